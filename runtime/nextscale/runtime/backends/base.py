"""What a backend is: memory, and executables bound to addresses in it. It knows nothing of models.

    memory = backend.allocate(size)
    executable = backend.load(path, graph)              # one graph, once
    call = executable.prepare(inputs, outputs)          # fixed shapes and addresses, once per batch size
    call.execute()                                      # as often as wanted

A later backend builds targets from a bundle first, and may capture a chain of calls; the contract stays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from nextscale.runtime.manifest import Graph


@dataclass(frozen=True)
class Bound:
    """A graph's input or output, bound: where its contiguous data lies and what shape it has there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    address: int


class Memory(Protocol):
    """A block of a backend's memory, with the host's view of it. ``address`` is what graphs are bound to.

    Where host and device memory are one, ``push`` and ``pull`` do nothing.
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


class Call(Protocol):
    """A graph with every tensor bound, ready to run; one thread at a time."""

    def execute(self) -> None:
        """Run it. Raises :class:`~nextscale.runtime.errors.BackendError`; a refused run is never passed over."""


class Executable(Protocol):
    """A loaded graph; calls of different slots may run at the same time."""

    def prepare(self, inputs: Sequence[Bound], outputs: Sequence[Bound]) -> Call:
        """Bind every input and output for one shape. Raises :class:`~nextscale.runtime.errors.BackendError`."""


class Backend(ABC):
    """Builds and executes graphs on one device, of bundles in one of ``precisions``.

    ``batch_sizes`` are what a pipeline uses unless told otherwise.
    """

    name: ClassVar[str]
    precisions: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    device: str

    @abstractmethod
    def allocate(self, size: int) -> Memory:
        """Memory of so many bytes; raises :class:`~nextscale.runtime.errors.BackendError` where there is too little."""

    @abstractmethod
    def load(self, path: Path, graph: Graph) -> Executable:
        """Load one graph file and check it against its signature in the manifest."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Name and version of what executes, for reports."""
