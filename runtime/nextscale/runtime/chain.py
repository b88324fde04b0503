"""One pass through the graphs of a bundle: begin, every step, pixels, on the buffers of one slot."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import InputError
from nextscale.plan.types import Step
from nextscale.runtime.backends.base import Executable
from nextscale.runtime.buffers import Slot
from nextscale.runtime.errors import NonFiniteError
from nextscale.runtime.manifest import Graph, Manifest, Tensor
from nextscale.runtime.noise import fill
from nextscale.runtime.ranges import span
from nextscale.runtime.request import Request
from nextscale.runtime.result import StepResult, Timing

log = logging.getLogger("nextscale.runtime")

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Chain:
    """A bundle's graphs, loaded."""

    manifest: Manifest
    executables: Mapping[str, Executable]

    def execute(self, slot: Slot, graph: Graph, images: int) -> float:
        """Run one graph on a slot's buffers; returns seconds."""
        call = slot.call(graph, self.executables[graph.name], images)
        start = time.perf_counter()
        with span(graph.name):
            call.execute()
        return time.perf_counter() - start

    def decode(self, slot: Slot, code_sum: Floats, turn: int) -> tuple[Floats, float]:
        """Code sums (images, channels, height, width) to pictures (images, height, width, 3), and seconds.

        They go through the code sum buffer number ``turn``, which must be free: the one that no step has yet to read.
        """
        graph, images = self.manifest.graph("decode"), len(code_sum)
        source = dataclasses.replace(graph.inputs[0], buffer=f"state.code_sum.{turn % 2}")
        slot.view(source, images)[...] = code_sum
        slot.push(source, images)
        seconds = self.execute(slot, dataclasses.replace(graph, inputs=(source,)), images)
        image = slot.pull(graph.outputs[0], images)  # (images, 3, height, width)
        check_finite("decode", {"image.out": image})
        return np.ascontiguousarray(image.transpose(0, 2, 3, 1)), seconds


@dataclasses.dataclass
class Lease:
    """A slot for the length of a call. ``done`` steps of the current pass, ``serial`` of all; both under its lock."""

    slot: Slot
    done: int = 0
    serial: int = 0
    open: bool = True

    def end(self) -> None:
        """From here on results of the call no longer read the slot."""
        with self.slot.lock:
            self.open = False


class Pass:
    """One pass: the pictures of ``request`` in a batch of ``images``, filled up with copies of its last picture.

    ``first`` numbers its first picture within the call. ``check`` is called before every graph and raises to stop the
    pass. ``late`` decodes code sums once the call has given its slot back.
    """

    def __init__(
        self,
        chain: Chain,
        lease: Lease,
        request: Request,
        images: int,
        first: int,
        check: Callable[[], None],
        late: Callable[[Floats], Floats],
    ) -> None:
        self.count, self.first, self.images = len(request), first, images
        self.timings: list[Timing] = []
        self._chain, self._lease, self._slot, self._check, self._late = chain, lease, lease.slot, check, late
        self._request = request.part([*range(self.count), *[self.count - 1] * (images - self.count)])

    def run(self, started: float) -> Iterator[StepResult]:
        """Every step's result; ``started`` is the call's own ``perf_counter``."""
        with self._slot.lock:
            self._lease.done = 0
            self._run(self._chain.manifest.graph("begin"), None)
        for step, graph in zip(self._chain.manifest.plan.steps, self._chain.manifest.steps, strict=True):
            with self._slot.lock:
                timing = self._run(graph, step)
                out = {t.name: self._slot.pull(t, self.images) for t in graph.outputs if t.name in _RESULTS}
                check_finite(graph.name, {name: out[name] for name in ("logits.out", "state.code_sum.out")})
                self._lease.done, self._lease.serial = self._lease.done + 1, self._lease.serial + 1
            log.debug("%s of %d pictures: %.1f ms", graph.name, self.images, timing.seconds * 1e3)
            yield StepResult(
                index=step.order,
                scale=step.scale,
                grid=step.grid,
                first_image=self.first,
                images=self.count,
                tokens=out["tokens.out"][: self.count].copy(),
                code_sum=out["state.code_sum.out"][: self.count].copy(),
                elapsed=time.perf_counter() - started,
                timing=timing,
                last=step is self._chain.manifest.plan.steps[-1],
                _decode=self.decode,
                _logits=self._logits_of(self._lease.serial, out["logits.out"]),
            )

    def decode(self, code_sum: Floats) -> Floats:
        """Pictures (count, height, width, 3) of this pass's code sums, on the call's slot for as long as it has one."""
        with self._slot.lock:
            if self._lease.open:
                return self._decode(code_sum)
        return self._late(code_sum)

    def _decode(self, code_sum: Floats) -> Floats:
        self._check()
        filled = np.concatenate([code_sum, np.repeat(code_sum[-1:], self.images - self.count, axis=0)])
        # The next step reads buffer done % 2 and writes the other, which is free until then.
        pictures, seconds = self._chain.decode(self._slot, filled, turn=self._lease.done + 1)
        self.timings.append(Timing("decode", self.first, self.count, 0.0, seconds))
        return pictures[: self.count]

    def _run(self, graph: Graph, step: Step | None) -> Timing:
        self._check()
        start = time.perf_counter()
        for tensor in graph.inputs:
            if tensor.source is not None:
                self._put(tensor, step)
                self._slot.push(tensor, self.images)
        filled = time.perf_counter() - start
        seconds = self._chain.execute(self._slot, graph, self.images)
        self.timings.append(Timing(graph.name, self.first, self.count, filled, seconds))
        return self.timings[-1]

    def _put(self, tensor: Tensor, step: Step | None) -> None:
        """Write what the caller owes a graph: labels, noise, settings, forced tokens."""
        request, view = self._request, self._slot.view(tensor, self.images)
        kind, _, stream = (tensor.source or "").partition(".")
        if kind == "labels":
            view[...] = request.labels
        elif kind == "uniforms" and step is not None:
            fill(view, [(request.seed, image) for image in request.images], step.order, int(stream))
        elif kind == "guidance" and step is not None:
            view[...] = request.guidance(self._chain.manifest.plan, step)
        elif kind == "tokens" and step is not None:
            view[...] = request.tokens.get(step.order, -1)
        else:
            settings: dict[str, Any] = {"top_p": request.top_p, "temperature": request.temperature}
            view[...] = settings[kind]

    def _logits_of(self, serial: int, logits: NDArray[Any]) -> Callable[[], Floats]:
        def read() -> Floats:
            with self._slot.lock:
                if not self._lease.open or self._lease.serial != serial:
                    raise InputError("logits are gone with the next step: read them before asking for it")
                return logits[: self.count].copy()

        return read


_RESULTS = ("logits.out", "tokens.out", "state.code_sum.out")


def check_finite(graph: str, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise :class:`NonFiniteError` where NaN or infinity came out of a graph."""
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            pictures = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)).tolist()
            raise NonFiniteError(
                f"{name} of {graph} holds NaN or infinity for the pictures {pictures} of the pass: the weights are "
                "broken or the precision is too low; check the checkpoint and export the bundle again"
            )
