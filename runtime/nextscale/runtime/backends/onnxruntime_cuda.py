"""ONNX Runtime's CUDA provider: weights once, in an arena, and a session per graph, batch size and slot.

Graphs are lifted in memory, so that weights are inputs, bound to the arena: as in a TensorRT engine. Row counts are
fixed when a session is made, which leaves no arithmetic on shapes to the CPU. A session captures itself into a CUDA
graph at its warm-up, and keeps a thread: ONNX Runtime holds handles and captured graphs per thread.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import ClassVar
from weakref import WeakKeyDictionary

from nextscale.runtime.backends import cuda
from nextscale.runtime.backends.arena import Arena, find_weights, place
from nextscale.runtime.backends.base import Backend, Bound, Call, Memory
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.onnxruntime import check_provider, import_onnxruntime
from nextscale.runtime.backends.onnxruntime_graphs import cuda_graph
from nextscale.runtime.backends.onnxruntime_slot import Fixed, SlotSessions
from nextscale.runtime.backends.resident import Resident, announce, ordinal_of, own
from nextscale.runtime.backends.tensorrt.lift import external_weights, read_graph
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.manifest import IMAGES

log = logging.getLogger("nextscale.runtime")

BATCH_SIZES = (1, 4)


class OnnxRuntimeCuda(Backend):
    """ONNX Runtime on an NVIDIA GPU. ``device`` is ``cuda`` or ``cuda:1``.

    A node that CUDA has no kernel for is refused; with ``cpu_nodes`` it runs on the CPU, at the price of copies and
    waits. ``open_device`` is how it gets at CUDA.
    """

    name: ClassVar[str] = "onnxruntime"
    replays = True  # between the steps of a picture nothing waits, though each session is launched by itself
    precisions = ("fp32", "fp16", "bf16")

    def __init__(
        self,
        device: str = "cuda",
        cpu_nodes: bool = False,
        ort: ModuleType | None = None,
        open_device: Callable[[int], cuda.Device] = cuda.open_device,
    ) -> None:
        self.device, self.cpu_nodes, ordinal = device, cpu_nodes, ordinal_of(device, self.name)
        self.ort = ort or import_onnxruntime()
        check_provider(self.ort)
        preload(self.ort)
        self.gpu = open_device(ordinal)

    def open(self, bundle: Bundle, batch_sizes: tuple[int, ...] | None = None) -> CudaSessions:
        """Lift the graphs and put the weights on the device; sessions are made for each slot."""
        return CudaSessions(self, bundle, batch_sizes or BATCH_SIZES)

    def versions(self) -> dict[str, str]:
        """Versions of ONNX Runtime, CUDA's driver and its bindings, and the GPU's name."""
        return {
            "onnxruntime": str(self.ort.__version__),
            "cuda-driver": self.gpu.driver,
            "gpu": f"{self.gpu.name} ({self.gpu.sm})",
            **cuda.versions(),
        }


class CudaSessions(Resident):
    """A bundle's graphs for ONNX Runtime's CUDA provider."""

    def __init__(self, backend: OnnxRuntimeCuda, bundle: Bundle, batch_sizes: tuple[int, ...]) -> None:
        super().__init__(backend.gpu)
        self.batch_sizes, self._backend = batch_sizes, backend
        self.text_lengths = (bundle.manifest.text_tokens,)  # every other would have sessions of its own
        self._graphs = {graph.name: graph for graph in bundle.manifest.graphs}
        self._rows, self._text = bundle.manifest.guidance_rows, bundle.manifest.text_tokens
        self._lifted, self._weights = {}, {}
        for graph in bundle.manifest.graphs:
            path = bundle.path(graph.file)
            self._weights[graph.name] = tuple(external_weights(read_graph(path)))
            self._lifted[graph.name] = cuda_graph(path).SerializeToString()
        names = dict.fromkeys(name for used in self._weights.values() for name in used)
        stored = find_weights(bundle, names)
        self.fixed = {"weights": place(stored)[1]}
        announce(self.fixed)
        self._arena = Arena(self.device, stored)
        self.scratch = None  # the provider's own arenas
        self._slots: WeakKeyDictionary[DeviceMemory, SlotSessions] = WeakKeyDictionary()

    def prepare(self, memory: Memory, graph: str, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> Call:
        """Bind a session, which captures itself at once; with a caller's own addresses it is bound, and no more."""
        slot = own(memory)
        if slot not in self._slots:
            backend = self._backend
            self._slots[slot] = SlotSessions(backend.ort, slot, backend.cpu_nodes)
        lent = not all(slot.holds(bound) for bound in (*inputs, *outputs))
        return self._slots[slot].bind(
            self._graph(graph, inputs), (*inputs, *self._lent_weights(graph)), outputs, captured=not lent
        )

    def capture(self, memory: Memory, calls: Sequence[Call]) -> Call:
        """All calls in one turn of the slot's thread; each session replays a CUDA graph of its own."""
        return self._slots[own(memory)].chain(calls)

    def close(self) -> None:
        """Wait, end the sessions, and give the device's memory back."""
        super().close()
        self._arena.free()

    def _end(self) -> None:
        for sessions in tuple(self._slots.values()):
            sessions.close()
        self._slots.clear()

    def _graph(self, name: str, inputs: Sequence[Bound]) -> Fixed:
        graph = self._graphs[name]
        shapes = {bound.name: bound.shape for bound in inputs}
        images = next(shapes[t.name][t.shape.index(IMAGES)] for t in graph.inputs if IMAGES in t.shape)
        return Fixed(graph, self._lifted[name], self._weights[name], images, self._rows, self._text)

    def _lent_weights(self, graph: str) -> list[Bound]:
        stored = self._arena.weights
        names = self._weights[graph]
        return [Bound(n, stored[n].dtype, stored[n].shape, self._arena.addresses[n]) for n in names]


def preload(ort: ModuleType) -> None:
    """Load CUDA and cuDNN from NVIDIA's wheels where they are installed; the provider looks elsewhere itself."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it does not find
        ort.preload_dlls()
    for line in said.getvalue().splitlines():
        log.debug("onnxruntime: %s", line)
