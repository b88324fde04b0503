"""What the backends on a CUDA device share: slots' memory, noise and looks for NaN as kernels, capture."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.base import Bound, Call, Loaded, Memory
from nextscale.runtime.backends.cuda import Captured, Device, Stream
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.kernels import ChainKernels
from nextscale.runtime.errors import BackendError

log = logging.getLogger("nextscale.runtime")


class Holds(Protocol):
    """A call that holds something of the device."""

    def drop(self) -> None:
        """Let it go; the call does not run any more, whoever still has it."""


class Resident(Loaded):
    """Graphs that run in a CUDA device's memory."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.kernels = ChainKernels(device)
        self._memories: weakref.WeakSet[DeviceMemory] = weakref.WeakSet()
        self._calls: weakref.WeakSet[Holds] = weakref.WeakSet()  # results that outlive a pipeline may have them

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

    def free_memory(self) -> int:
        """Bytes of the device that nobody holds now."""
        return self.device.memory_info()[0]

    def close(self) -> None:
        """Wait for every slot, end what ran on it, and give the device's memory back. A device that is lost is told in
        the log: it has to be left all the same."""
        for memory in tuple(self._memories):
            try:
                memory.wait()
            except BackendError as error:
                log.warning("while closing: %s", error)
        self._end()
        for call in tuple(self._calls):
            call.drop()
        for memory in tuple(self._memories):
            memory.close()
        self._memories.clear()

    def _end(self) -> None:
        """What a backend does once nothing runs any more, and all memory is there still."""


class GraphCall:
    """A captured CUDA graph as a call; it keeps what was captured alive. ``after`` follows its first launch."""

    def __init__(
        self, graph: Captured.Graph, stream: Stream, calls: Sequence[Call], after: Callable[[], None] | None
    ) -> None:
        self._graph: Captured.Graph | None = graph
        self._stream, self._calls, self._after = stream, tuple(calls), after

    def execute(self) -> None:
        """Launch all of it."""
        if self._graph is None:
            raise BackendError("a captured graph of a closed pipeline was launched")
        self._graph.launch(self._stream)
        after, self._after = self._after, None
        if after is not None:
            after()

    def drop(self) -> None:
        """Let the graph go, and what was captured."""
        self._graph, self._calls, self._after = None, (), None


def record(stream: Stream, calls: Sequence[Call], after: Callable[[], None] | None = None) -> GraphCall:
    """Capture calls, which have all run before, in their order."""
    with stream.capture() as captured:
        for call in calls:
            call.execute()
    if captured.graph is None:
        raise BackendError("a capture ended without a graph")
    return GraphCall(captured.graph, stream, calls, after)


def announce(fixed: Mapping[str, int]) -> None:
    """Say what is held once, by cause, before the arena is taken: where that fails, it was said."""
    log.info("held once: %s", ", ".join(f"{cause} {size / 1e6:.1f} MB" for cause, size in fixed.items()))


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
