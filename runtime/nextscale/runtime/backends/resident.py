"""What the backends on a CUDA device share: slots' memory, noise and looks for NaN as kernels, capture."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.base import Bound, Call, Loaded, Memory
from nextscale.runtime.backends.cuda import Captured, Device, Stream
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.kernels import ChainKernels
from nextscale.runtime.errors import BackendError


class Resident(Loaded):
    """Graphs that run in a CUDA device's memory."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.kernels = ChainKernels(device)
        self._memories: weakref.WeakSet[DeviceMemory] = weakref.WeakSet()

    def allocate(self, size: int, visible: int | None = None) -> DeviceMemory:
        """A slot's memory with its stream and its scratch; the host sees the first ``visible`` bytes of it."""
        memory = DeviceMemory(self.device, size, visible, self.scratch or 0)
        self._memories.add(memory)
        return memory

    def uniforms(self, memory: Memory, keys: Bound, out: Bound, step: int, stream: int) -> Call:
        """Noise by a kernel."""
        return self.kernels.uniforms(own(memory).stream, keys, out, step, stream)

    def flag_nonfinite(self, memory: Memory, values: Bound, flags: Bound) -> Call:
        """A look by a kernel."""
        return self.kernels.flag_nonfinite(own(memory).stream, values, flags)

    def close(self) -> None:
        """Give the device's memory back."""
        for memory in tuple(self._memories):
            memory.close()
        self._memories.clear()


class GraphCall:
    """A captured CUDA graph as a call; it keeps what was captured alive."""

    def __init__(self, graph: Captured.Graph, stream: Stream, calls: Sequence[Call]) -> None:
        self._graph, self._stream, self._calls = graph, stream, tuple(calls)

    def execute(self) -> None:
        """Launch all of it."""
        self._graph.launch(self._stream)


def record(stream: Stream, calls: Sequence[Call]) -> GraphCall:
    """Capture calls, which have all run before, in their order."""
    with stream.capture() as captured:
        for call in calls:
            call.execute()
    if captured.graph is None:
        raise BackendError("a capture ended without a graph")
    return GraphCall(captured.graph, stream, calls)


def own(memory: Memory) -> DeviceMemory:
    """A slot's memory as what this backend gave out."""
    if not isinstance(memory, DeviceMemory):
        raise BackendError(f"{type(memory).__name__} is another backend's memory")
    return memory


def ordinal_of(device: str, backend: str) -> int:
    """The number in ``cuda`` or ``cuda:1``; raises :class:`~nextscale.plan.errors.InputError` for anything else."""
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or not (device == "cuda" or (number.isascii() and number.isdigit())):
        raise InputError(f"the backend {backend!r} runs on 'cuda' or 'cuda:1' and the like; found {device!r}")
    return int(number or 0)
