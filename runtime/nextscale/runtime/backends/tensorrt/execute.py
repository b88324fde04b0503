"""Engines on the GPU: weights in one arena, one context per graph, batch size and slot, all on the slot's scratch."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from nextscale.plan.errors import InputError
from nextscale.runtime.backends import cuda
from nextscale.runtime.backends.arena import Arena, find_weights, place
from nextscale.runtime.backends.base import Backend, Bound, Call, InOrder, Memory
from nextscale.runtime.backends.checks import accepted
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.resident import Resident, announce, ordinal_of, own, record
from nextscale.runtime.backends.tensorrt import library as libraries
from nextscale.runtime.backends.tensorrt.calls import EngineCall, LentCall
from nextscale.runtime.backends.tensorrt.contexts import ContextMaker
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import IMAGES, Graph
from nextscale.runtime.targets import OpenTarget, check_machine, find_target, open_target
from nextscale.runtime.targets.command import rebuild_command

log = logging.getLogger("nextscale.runtime")

ALIGNMENT = 256  # bytes, of every address that an engine is given


class TensorRT(Backend):
    """TensorRT on an NVIDIA GPU, from the target that ``nextscale build`` made for it.

    ``device`` is ``cuda`` or ``cuda:1``; ``targets`` is the folder that ``nextscale build -o`` was given, None where
    targets lie beside their bundle. ``verify`` is ``full`` (hash every engine) or ``size``. ``open_device`` and
    ``load_library`` are how it gets at CUDA and TensorRT.
    """

    name: ClassVar[str] = "tensorrt"
    replays = True
    precisions = libraries.PRECISIONS

    def __init__(
        self,
        device: str = "cuda",
        targets: str | os.PathLike[str] | None = None,
        verify: str = "full",
        open_device: Callable[[int], cuda.Device] = cuda.open_device,
        load_library: Callable[[str], libraries.Library] = libraries.load,
    ) -> None:
        self.device, self.verify, ordinal = device, verify, ordinal_of(device, self.name)
        self.targets = None if targets is None else Path(targets)
        self.library = load_library(self.name)
        self.gpu = open_device(ordinal)

    def open(self, bundle: Bundle, batch_sizes: tuple[int, ...] | None = None) -> Engines:
        """Find the target for this GPU, check it, and load its engines and the weights."""
        opened = self.find(bundle, batch_sizes)
        return Engines(self.gpu, self.library, bundle, opened, batch_sizes or opened.target.batch_sizes)

    def find(self, bundle: Bundle, batch_sizes: tuple[int, ...] | None = None) -> OpenTarget:
        """The target for this GPU, checked; nothing of it is loaded. Raises what :meth:`open` raises for it."""
        folder = find_target(bundle, self.name, self.gpu.sm, self.targets, self.library.targets)
        opened = open_target(folder, bundle, self.verify)
        check_machine(opened.target, self.name, self.library.version, self.gpu.sm, bundle.folder, folder.parent)
        missing = sorted({*(batch_sizes or ())} - {*opened.target.batch_sizes})
        if missing:
            every = replace(opened.target, batch_sizes=tuple(sorted({*missing, *opened.target.batch_sizes})))
            raise InputError(
                f"batch sizes {missing} were asked for, and {folder} was built for {list(opened.target.batch_sizes)}: "
                f"build it with `{rebuild_command(bundle.folder, every, folder.parent)}`"
            )
        return opened

    def versions(self) -> dict[str, str]:
        """Versions of TensorRT, CUDA's driver and its bindings, and the GPU's name."""
        return {
            self.name: self.library.version,
            "cuda-driver": self.gpu.driver,
            "gpu": f"{self.gpu.name} ({self.gpu.sm})",
            **cuda.versions(),
        }


class TensorRTRTX(TensorRT):
    """TensorRT for RTX: the same on Ampere to Blackwell RTX cards, with targets that were built on any machine."""

    name: ClassVar[str] = "tensorrt-rtx"


@dataclass(frozen=True)
class Loading:
    """An engine of a graph: its inputs that are weights, and the scratch that each of its profiles needs."""

    graph: Graph
    engine: Any
    weights: tuple[str, ...]
    scratch: tuple[int, ...]


class Engines(Resident):
    """A target's engines, over one copy of the weights."""

    def __init__(
        self,
        device: cuda.Device,
        library: libraries.Library,
        bundle: Bundle,
        opened: OpenTarget,
        batch_sizes: tuple[int, ...],
    ) -> None:
        super().__init__(device)
        self.batch_sizes, self._library = batch_sizes, library
        self.text_lengths = (bundle.manifest.text_tokens,)  # what its profiles were built for
        self._profiles = {size: i for i, size in enumerate(opened.target.batch_sizes)}
        self._lock = threading.Lock()
        self._told: set[str] = set()
        # For callers' own arrays: a context for each graph and number of pictures of a slot.
        self._lent: WeakKeyDictionary[DeviceMemory, dict[tuple[str, int], Any]] = WeakKeyDictionary()
        with device.current():
            self._runtime = library.trt.Runtime(library.logger)
            loaded = [self._load(graph, opened) for graph in bundle.manifest.graphs]
            self._makers = ContextMaker(library, opened)
        self._engines = {one.graph.name: one for one in loaded}
        names = dict.fromkeys(name for one in loaded for name in one.weights)
        stored = find_weights(bundle, names)
        sizes = {"weights": place(stored)[1]} if names else {}
        self.fixed: Mapping[str, int] = {**sizes, "engines": sum(engine.size for engine in opened.target.engines)}
        announce(self.fixed)
        self._arena = Arena(device, stored) if names else None
        for one in loaded:
            self._check_weights(one)
        self.scratch = max(one.scratch[self._profiles[size]] for one in loaded for size in batch_sizes)

    def prepare(self, memory: Memory, graph: str, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> Call:
        """A context whose shapes and addresses are set for good; where some are a caller's own, one that is shared by
        all such calls of this slot, and made at the first."""
        loading, slot = self._engines[graph], own(memory)
        images = next(
            bound.shape[tensor.shape.index(IMAGES)]
            for tensor, bound in zip(loading.graph.inputs, inputs, strict=True)
            if IMAGES in tensor.shape
        )
        addresses = {bound.name: bound.address for bound in (*inputs, *outputs)}
        for name, address in addresses.items():
            if address % ALIGNMENT:
                raise BackendError(
                    f"{name} of {graph} would lie at {address:#x}, and TensorRT takes addresses that are multiples of "
                    f"{ALIGNMENT}: a tape's row (rows x channels x bytes of a value) must be one, and so must the "
                    "start of an array that is lent"
                )
        arena = self._arena.addresses if self._arena else {}
        weights = {name: arena[name] for name in loading.weights}
        shapes = {bound.name: bound.shape for bound in inputs}

        def make() -> Any:
            with self._lock, self.device.current():
                context = self._makers.make(loading.engine, graph)
                index = self._profiles[images]
                accepted(f"take profile {index} of {graph}", context.set_optimization_profile_async(index, handle))
                for name, shape in shapes.items():
                    accepted(f"take {shape} for {name} of {graph}", context.set_input_shape(name, shape))
                if slot.scratch is not None:
                    context.set_device_memory(slot.scratch.address, slot.scratch.size)
                for name, address in {**addresses, **weights}.items():
                    accepted(f"take an address for {name} of {graph}", context.set_tensor_address(name, address))
                open_ends = context.infer_shapes()
                if open_ends:
                    raise BackendError(f"{graph}: TensorRT still misses shapes or addresses of {open_ends}")
                return context

        handle = slot.stream.handle
        call: EngineCall | LentCall
        if all(slot.holds(bound) for bound in (*inputs, *outputs)):
            call = EngineCall(self.device, graph, handle, make)
        else:
            contexts = self._lent.setdefault(slot, {})
            if (graph, images) not in contexts:
                contexts[graph, images] = make()
            call = LentCall(self.device, graph, handle, contexts[graph, images], addresses)
        self._calls.add(call)
        return call

    def capture(self, memory: Memory, calls: Sequence[Call]) -> Call:
        """One CUDA graph of them all. A context is captured once: for another graph there is another, run once before.

        Where they cannot be captured, the calls stay calls, and the log says so.
        """
        if any(isinstance(call, LentCall) for call in calls):
            return InOrder(calls)
        stream = own(memory).stream
        fresh = [call.uncaptured() if isinstance(call, EngineCall) else call for call in calls]
        if any(new is not call for new, call in zip(fresh, calls, strict=True)):
            for call in fresh:
                call.execute()
        for call in fresh:
            if isinstance(call, EngineCall) and not call.capturable():
                self._warn(
                    f"TensorRT says that {call.graph} cannot be captured into a CUDA graph: its graphs are launched "
                    "one by one (engines of tensorrt-rtx need to be built with REQUIRE_USER_ALLOCATION)"
                )
                return InOrder(calls)
        for call in fresh:
            if isinstance(call, EngineCall):
                call.captured = True  # from here on, also where the capture fails
        self._calls.update(call for call in fresh if isinstance(call, EngineCall))
        try:
            made = record(stream, fresh, after=self._keep)
        except BackendError as error:
            for call in fresh:
                call.execute()  # what is refused here, too, raises
            self._warn(f"graphs are launched one by one, since they could not be captured: {error}")
            return InOrder(fresh)
        self._calls.add(made)
        return made

    def close(self) -> None:
        """Wait, and give the device's memory back."""
        super().close()
        self._lent.clear()
        self._engines.clear()
        if self._arena is not None:
            self._arena.free()

    def _end(self) -> None:
        with suppress(BackendError), self._lock, self.device.current():
            self._makers.keep()

    def _warn(self, text: str) -> None:
        """Once for all slots, batch sizes, and what is captured of them."""
        if text not in self._told:
            log.warning("%s", text)
            self._told.add(text)

    def _keep(self) -> None:
        """After a first launch: while contexts are made, nobody may write what they compile."""
        with self._lock, self.device.current():
            self._makers.keep_once()

    def _load(self, graph: Graph, opened: OpenTarget) -> Loading:
        """Deserialise a checked engine file; refuse one whose tensors are not the graph's."""
        path, trt = opened.path(graph.name), self._library.trt
        engine = self._library.deserialize(self._runtime, path.read_bytes(), str(path))
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        takes = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        gives = [name for name in names if name not in takes]
        own_inputs = {tensor.name for tensor in graph.inputs}
        weights = tuple(name for name in takes if name not in own_inputs)
        absent = own_inputs - {*takes}
        if absent or {*gives} != {tensor.name for tensor in graph.outputs}:
            raise BackendError(f"{path} is no engine of {graph.name}: it takes {takes[:8]}... and gives {gives}")
        if weights and opened.target.weights == "embedded":
            raise BackendError(f"{path} asks for the weights {weights[:3]}..., which its target says are inside")
        for tensor in (*graph.inputs, *graph.outputs):
            found = engine.get_tensor_dtype(tensor.name)
            if found != getattr(trt.DataType, libraries.DTYPES[tensor.dtype]):
                raise BackendError(f"{path}: {tensor.name} is {found} in the engine and {tensor.dtype} in the bundle")
        return Loading(graph, engine, weights, tuple(self._library.scratch(engine)))

    def _check_weights(self, one: Loading) -> None:
        """Refuse an engine whose weight inputs are not the tensors of the weights file."""
        for name in one.weights:
            assert self._arena is not None
            stored, shape = self._arena.weights[name], tuple(one.engine.get_tensor_shape(name))
            found = one.engine.get_tensor_dtype(name)
            if shape != stored.shape or found != getattr(self._library.trt.DataType, libraries.DTYPES[stored.dtype]):
                raise BackendError(
                    f"the engine of {one.graph.name} takes {name} as {found} {list(shape)}, and the weights file holds "
                    f"{stored.dtype} {list(stored.shape)}: build the target again"
                )
