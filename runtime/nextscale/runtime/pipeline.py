"""The runtime's front: a bundle opened on a backend, and calls that make pictures with it, from any thread."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from nextscale.plan.errors import InputError
from nextscale.runtime._version import __version__
from nextscale.runtime.arguments import whole
from nextscale.runtime.backends import Backend, make_backend
from nextscale.runtime.backends.base import Loaded
from nextscale.runtime.buffers import Slot, for_text, layout, unrolled
from nextscale.runtime.bundle import Bundle, check_weights, open_bundle
from nextscale.runtime.chain import Chains
from nextscale.runtime.decoding import Floats, decode_arrays, decode_host
from nextscale.runtime.encoding import TextEncoder
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import WEIGHTS_FILE, Manifest
from nextscale.runtime.memory import MemoryReport
from nextscale.runtime.passes import Lease, Pass
from nextscale.runtime.request import Guidance, Request, Setting, check_batch_sizes, make_request, passes
from nextscale.runtime.result import Provenance, Result, StepResult
from nextscale.runtime.slots import Cancel, Control, SlotPool, check_seconds
from nextscale.runtime.subjects import Subject

log = logging.getLogger("nextscale.runtime")
MOST_SLOTS = 1024


class Pipeline:
    """Makes pictures from a bundle. Open it with :meth:`open`; it is safe to call from any thread.

    Every call takes one of its slots (a set of buffers over the one copy of the weights) or waits for one.
    """

    def __init__(self, bundle: Bundle, backend: Backend, loaded: Loaded, slots: int, wait: float) -> None:
        self.bundle, self.backend, self.batch_sizes = bundle, backend, tuple(sorted(loaded.batch_sizes))
        graphs, rows, images = unrolled(bundle.manifest.graphs), bundle.manifest.guidance_rows, self.batch_sizes[-1]
        longest = for_text(graphs, bundle.manifest.text_tokens)
        slot = layout(longest, rows, images).by_cause()
        self.memory = MemoryReport(fixed=loaded.fixed, slot=slot, scratch=loaded.scratch, slots=slots, images=images)
        log.info("%s", self.memory)
        free = loaded.free_memory()
        try:
            made = [
                Chains(graphs, loaded, Slot(longest, rows, loaded, images), backend.replays, self.batch_sizes)
                for _ in range(slots)
            ]
        except BaseException:
            loaded.close()
            raise
        left = loaded.free_memory()
        if free is not None and left is not None:
            known = slots * (sum(self.memory.slot.values()) + (self.memory.scratch or 0))
            self.memory = dataclasses.replace(self.memory, taken=max(free - left - known, 0))
        self._slots = SlotPool(made, wait, loaded.close)
        self._texts = TextEncoder(bundle, self._slots, self.batch_sizes)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        backend: str | Backend = "onnxruntime",
        device: str | None = None,
        slots: int = 1,
        batch_sizes: Sequence[int] | None = None,
        verify: str = "full",
        expect_sha256: str | None = None,
        threads: int | None = None,
        wait: float = 60.0,
        targets: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Open a bundle read-only, check it, and load its graphs.

        ``backend`` is a name (``onnxruntime`` on the device ``cpu`` or ``cuda``, ``tensorrt``, ``tensorrt-rtx``), or a
        backend made by the caller, which then brings its own device, threads, targets and how they are checked.
        ``targets`` is where ``nextscale build -o`` put what it built, None beside the bundle.
        ``slots`` calls run at the same time; one that finds none free stands in a queue, at most ``wait`` seconds.
        ``batch_sizes`` are the sizes (1 to 1024) that passes may have (None: what the backend prefers): a request is
        cut into passes of the largest, its rest filled up to the next size. ``verify`` is ``full`` (hash every file,
        those of a target too, the bundle's weights where they are read) or ``size``; ``expect_sha256`` pins the
        manifest's digest. Raises a :class:`~nextscale.plan.errors.NextscaleError`.
        """
        start = time.perf_counter()
        if not whole(slots) or not 1 <= slots <= MOST_SLOTS:
            raise InputError(f"slots is a whole number from 1 to {MOST_SLOTS}; found {slots!r}")
        sizes = None if batch_sizes is None else check_batch_sizes(batch_sizes)
        check_seconds("wait", wait)
        if isinstance(backend, Backend) and any(v is not None for v in (device, threads, targets)):
            raise InputError("device, threads and targets belong to the backend that was given: set them there")
        bundle = open_bundle(path, verify, expect_sha256, later=(WEIGHTS_FILE,))
        engine = backend if isinstance(backend, Backend) else make_backend(backend, device, threads, targets, verify)
        if bundle.manifest.precision not in engine.precisions:
            raise InputError(
                f"{bundle.folder} is a bundle in {bundle.manifest.precision}, which {engine.name} does not run on "
                f"{engine.device}: export one in {' or '.join(engine.precisions)}"
            )
        if verify == "full" and engine.reads_weights(bundle):
            check_weights(bundle)
        pipeline = cls(bundle, engine, engine.open(bundle, sizes), slots, wait)
        log.info(
            "opened %s (%s) on %s %s in %.2f s",
            bundle.folder,
            bundle.digest[:12],
            engine.name,
            engine.device,
            time.perf_counter() - start,
        )
        return pipeline

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest: plan, classes, where it comes from."""
        return self.bundle.manifest

    @property
    def provenance(self) -> Provenance:
        """What every picture of this pipeline says about its origin."""
        recipe = self.manifest.recipe
        versions = {"nextscale": __version__, **self.backend.versions()}
        return Provenance(self.manifest.name, self.bundle.digest, f"{recipe.name} version {recipe.version}", versions)

    def generate(
        self,
        subjects: Subject | Sequence[Subject],
        *,
        negative: Subject | Sequence[Subject] = None,
        seed: int | None = None,
        first_image: int = 0,
        guidance_scale: Guidance | None = None,
        top_p: Setting | None = None,
        temperature: Setting | None = None,
        tokens: Sequence[ArrayLike | None] | None = None,
        timeout: float | None = None,
        cancel: Cancel | None = None,
        on_step: Callable[[StepResult], object] | None = None,
        out: object = None,
    ) -> Result:
        """Make one picture for each subject.

        Of a class-conditional bundle: a class number, a class name, or None for no class. Of a text-conditional one: a
        prompt, where the bundle has a text encoder, or features (rows, width) float32 of one; ``negative`` likewise is
        what the pictures, or each of them, should not show.
        ``seed`` with the picture's number (``first_image`` on) fixes its noise; None draws a seed, which the result
        tells. ``guidance_scale``, ``top_p``, ``temperature``: a number, or one for each picture; None is the bundle's
        default. Guidance may also be, for each picture, a list of one number for every scale of the schedule.
        ``tokens`` forces tokens: for each step None or (pictures, tokens) whole numbers (of a bitwise model (pictures,
        tokens, bits)), -1 to sample.
        ``timeout`` in seconds includes waiting for a slot; it and ``cancel`` (an event, or a function that returns
        True to stop) are looked at before every graph, or before a whole pass where the backend replays one.
        ``on_step`` sees every step as it is finished. ``out`` is an array of the caller's (numpy, torch, CuPy: DLPack
        or ``__cuda_array_interface__``) on the backend's device, (pictures, 3, height, width) float32: the pictures are
        written there, and the result has none.
        Raises a :class:`~nextscale.plan.errors.NextscaleError`; no picture is returned then.
        """
        started, control = time.perf_counter(), Control.start(timeout, cancel)
        if on_step is not None and not callable(on_step):
            raise InputError(f"on_step is a function that takes a step's result; found {on_step!r}")
        self._slots.check()
        settings = (seed, first_image, guidance_scale, top_p, temperature, tokens, negative)
        request = make_request(self.manifest, subjects, *settings, encode=self._texts.encoder(control))
        whole = self.backend.replays and on_step is None
        floats, tokens_of, timings = [], [], []
        with closing(self._passes(request, control)) as all_passes:
            for one in all_passes:
                to = None if out is None else one.lend(out, len(request))
                tokens_made, pictures = one.picture(to) if whole else one.stepwise(started, on_step, to)
                if pictures is not None:
                    floats.append(pictures)
                tokens_of.append(tokens_made)
                timings.extend(one.timings)
        return Result(
            _floats=np.concatenate(floats) if floats else None,
            subjects=request.subjects.names,
            negatives=request.subjects.negatives,
            seed=request.seed,
            image_numbers=request.images,
            guidance_scale=request.guidance_scale,
            top_p=request.top_p,
            temperature=request.temperature,
            tokens=tuple(np.concatenate(parts) for parts in zip(*tokens_of, strict=True)),
            timings=tuple(timings),
            seconds=time.perf_counter() - started,
            provenance=self.provenance,
        )

    def stream(
        self,
        subjects: Subject | Sequence[Subject],
        *,
        negative: Subject | Sequence[Subject] = None,
        seed: int | None = None,
        first_image: int = 0,
        guidance_scale: Guidance | None = None,
        top_p: Setting | None = None,
        temperature: Setting | None = None,
        tokens: Sequence[ArrayLike | None] | None = None,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> Generator[StepResult]:
        """Like :meth:`generate`, step by step: an iterator of :class:`StepResult`, pass after pass.

        Arguments are checked and prompts encoded now; a slot is taken at the first step and given back after the last,
        or when the iterator is closed, which cancels the call. ``timeout`` counts from now, and is looked at when a
        step is asked for: a stream that is neither read to its end nor closed keeps its slot, past its timeout too. So
        close it, with ``contextlib.closing`` where reading may stop early.
        """
        control = Control.start(timeout, cancel)
        self._slots.check()
        settings = (seed, first_image, guidance_scale, top_p, temperature, tokens, negative)
        request = make_request(self.manifest, subjects, *settings, encode=self._texts.encoder(control))
        return self._stream(request, control, time.perf_counter())

    def encode(
        self,
        prompts: Sequence[str],
        *,
        truncate: bool = False,
        timeout: float | None = None,
        cancel: Cancel | None = None,
    ) -> list[tuple[Floats, int]]:
        """Features (rows, width) float32 of prompts, each with its length in tokens, as :meth:`generate` takes them.

        For prompts that come again and again. One that is too long is an error, or cut off where ``truncate`` is True.
        Raises a :class:`~nextscale.plan.errors.NextscaleError`, also for a bundle without a text encoder.
        """
        self._slots.check()
        return self._texts.encode(prompts, Control.start(timeout, cancel), truncate)

    def decode(
        self, code_sum: object, *, out: object = None, timeout: float | None = None, cancel: Cancel | None = None
    ) -> Floats | None:
        """Pictures (n, height, width, 3) float32 of code sums (n, channels, height, width) float32, of any step.

        ``code_sum`` is a numpy array, or any array on the backend's device, which is read where it lies; its number is
        then one that ``batch_sizes`` add up to. Where ``out`` is given, as for :meth:`generate`, the pictures go there,
        as (n, 3, height, width), and None is returned. Raises a :class:`~nextscale.plan.errors.NextscaleError`.
        """
        self._slots.check()
        with self._slots.take(Control.start(timeout, cancel)) as chains, chains.slot.lock:
            return decode_arrays(chains.fitting(0), code_sum, self.batch_sizes, out)

    def close(self) -> None:
        """Refuse later calls. Calls under way stop before their next graph with ``PipelineClosed``."""
        self._slots.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, request: Request, control: Control, started: float) -> Generator[StepResult]:
        with closing(self._passes(request, control)) as all_passes:
            for one in all_passes:
                yield from one.run(started)

    def _passes(self, request: Request, control: Control) -> Generator[Pass]:
        """The passes of a request, one after the other on one slot."""

        def check() -> None:
            self._slots.check()
            control.check()

        with self._slots.take(control) as chains:
            lease = Lease(chains.fitting(request.subjects.text_tokens))
            try:
                for pictures, images in passes(len(request), self.batch_sizes):
                    part = request.part(pictures)
                    yield Pass(self.manifest.plan, lease, part, images, pictures.start, check, self._decode_late)
            except BaseException:
                with suppress(BackendError):  # what a device was still asked for is not to meet the next call's
                    chains.slot.memory.wait()
                raise
            finally:
                lease.end()

    def _decode_late(self, code_sum: Floats) -> Floats:
        """Pictures of code sums whose pass is over, on any free slot."""
        with self._slots.take(Control.start(None, None)) as chains, chains.slot.lock:
            chain = chains.fitting(0)
            return np.concatenate(
                [
                    decode_host(chain, code_sum[p.start : p.stop], n, 0)
                    for p, n in passes(len(code_sum), self.batch_sizes)
                ]
            )
