"""Memory by its address: a block that somebody holds, and what CUDA says of any address."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pointer:
    """What CUDA knows of an address. ``memory``: device, managed, host (pinned) or unknown (the host's own)."""

    memory: str
    ordinal: int
    foreign: bool  # allocated in another context than the device's primary one


class Block:
    """Memory that is taken once: ``address`` and ``size`` in bytes. Given back by :meth:`free`, or when forgotten."""

    def __init__(self, address: int, size: int, release: Callable[[int], None]) -> None:
        self.address, self.size = address, size
        self._free = weakref.finalize(self, release, address)
        self._free.atexit = False  # the driver frees what a process leaves

    def free(self) -> None:
        """Give it back; again is nothing."""
        self._free()
