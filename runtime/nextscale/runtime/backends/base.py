"""What a backend is: a bundle's graphs on one device, prepared once for their addresses, executed, captured.

    loaded = backend.open(bundle)                                  # graphs, and the weights once
    memory = loaded.allocate(size)                                 # of one slot: memory and an order of work
    call = loaded.prepare(memory, "step_00", inputs, outputs)      # fixed shapes and addresses
    call.execute()                                                 # as often as wanted
    picture = loaded.capture(memory, calls)                        # all of a chain as one call

It knows nothing of models: which graphs there are and what lies where is the pipeline's affair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from nextscale.runtime.bundle import Bundle


@dataclass(frozen=True)
class Bound:
    """A graph's input or output, bound: where its contiguous data lies and what shape it has there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    address: int


class Memory(Protocol):
    """A slot's block of memory, with the host's view of it. ``address`` is what graphs are bound to.

    Work on one memory runs in the order in which it was asked for. Where host and device memory are one, ``push`` and
    ``pull`` move nothing.
    """

    @property
    def address(self) -> int:
        """The first byte, aligned for any tensor."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def view(self, offset: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """The host's array of those bytes; writing it is seen by graphs after ``push``."""

    def push(self, offset: int, size: int) -> None:
        """Bring what the host wrote to the device."""

    def pull(self, offset: int, size: int) -> None:
        """Bring what graphs wrote to the host; waits for them."""

    def copy(self, offset: int, size: int, address: int) -> None:
        """Bring what graphs wrote to another place on the same device, in the order of work."""

    def wait(self) -> None:
        """Return when all work that was asked for is done. Raises where some of it failed."""


class Call(Protocol):
    """A graph, or a chain of them, with every tensor bound; one thread at a time."""

    def execute(self) -> None:
        """Ask for the work; a device may still be at it afterwards.

        Raises :class:`~nextscale.runtime.errors.BackendError`; a refused run is never passed over.
        """


class InOrder:
    """Calls as one, where the backend has nothing better: one after the other."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = tuple(calls)

    def execute(self) -> None:
        """Run them all."""
        for call in self._calls:
            call.execute()


class Loaded(ABC):
    """A bundle's graphs, loaded on one device.

    ``batch_sizes`` are those that passes may have, ``text_lengths`` what the symbol ``text`` may stand for: the longest
    is the manifest's ``text_tokens``, 0 alone where no tensor has it. ``fixed`` are bytes by cause that are held once,
    whatever the slots: weights, engines. ``scratch`` is what one slot's graphs need on top of its buffers while they
    run, the largest's; None where the backend's own allocator keeps it. All are known before a slot is allocated.
    """

    batch_sizes: tuple[int, ...]
    text_lengths: tuple[int, ...]
    fixed: Mapping[str, int]
    scratch: int | None = None

    @abstractmethod
    def allocate(self, size: int, visible: int) -> Memory:
        """A slot's memory; raises :class:`~nextscale.runtime.errors.BackendError` where there is too little.

        The host views, pushes and pulls no more than its first ``visible`` bytes.
        """

    @abstractmethod
    def prepare(self, memory: Memory, graph: str, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> Call:
        """Bind every input and output of a graph for one shape; all of them lie in ``memory`` or in the caller's own.

        Raises :class:`~nextscale.runtime.errors.BackendError`.
        """

    @abstractmethod
    def uniforms(self, memory: Memory, keys: Bound, out: Bound, step: int, stream: int) -> Call:
        """Noise by :mod:`nextscale.runtime.noise`: ``keys`` (images, 2) int64 are the seed and number of each picture,
        ``out`` (images, ...) float32. The keys are read when the call runs."""

    @abstractmethod
    def flag_nonfinite(self, memory: Memory, values: Bound, flags: Bound) -> Call:
        """Set ``flags`` (images,) int32 to 1 for pictures whose ``values`` (images, ...) float32 hold NaN or infinity.

        Others are left as they are.
        """

    def capture(self, memory: Memory, calls: Sequence[Call]) -> Call:
        """One call that runs them all in order; each of them has run before."""
        return InOrder(calls)

    def free_memory(self) -> int | None:
        """Bytes of the device that nobody holds now; None on the host."""
        return None

    def close(self) -> None:
        """Give back what is held; no call of it runs any more. Memory of the host goes with its last reference."""
        return


class Backend(ABC):
    """Opens bundles in one of ``precisions`` on one device.

    Where ``replays``, a whole picture runs as one captured call, with nothing of the host between its steps.
    """

    name: ClassVar[str]
    replays: bool = False
    precisions: tuple[str, ...]
    device: str

    def reads_weights(self, bundle: Bundle) -> bool:
        """Whether :meth:`open` would read the bundle's weights: not where it has a target with weights of its own."""
        return True

    @abstractmethod
    def open(self, bundle: Bundle, batch_sizes: tuple[int, ...] | None = None) -> Loaded:
        """Load all graphs, check them against their signatures, and put the weights where they run.

        ``batch_sizes`` are what a pipeline will use; None leaves them to the backend. Raises
        :class:`~nextscale.runtime.errors.BackendError`.
        """

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Name and version of what executes, for reports."""
