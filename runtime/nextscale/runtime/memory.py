"""Where memory goes: what a pipeline reserves, by cause, and what the process holds."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemoryReport:
    """Bytes by cause, known before any slot is allocated.

    ``fixed`` is held once for all slots: the weights above all. ``slot`` is one slot's buffers, sized for ``images``
    pictures in a pass, and ``scratch`` what its graphs need while they run: the largest one's, once per slot. None:
    the backend keeps scratch of its own, on top. ``taken`` is what else was seen to go when a device's slots were made:
    that scratch, contexts, captured graphs.
    """

    fixed: Mapping[str, int]
    slot: Mapping[str, int]
    scratch: int | None
    slots: int
    images: int
    taken: int = 0

    @property
    def weights(self) -> int:
        """The weights, one copy for all graphs and slots."""
        return self.fixed.get("weights", 0)

    @property
    def total(self) -> int:
        """Everything that is known: what is held once, all slots' buffers and scratch, and what was seen to go."""
        return sum(self.fixed.values()) + self.slots * (sum(self.slot.values()) + (self.scratch or 0)) + self.taken

    def __str__(self) -> str:
        parts = [f"{cause} (one copy) {_mb(size)}" for cause, size in self.fixed.items()]
        parts += [f"{cause} {_mb(size)}" for cause, size in self.slot.items()]
        parts.append("scratch of the backend's own" if self.scratch is None else f"scratch {_mb(self.scratch)}")
        if self.taken:
            parts.append(f"seen to go beside {_mb(self.taken)}")
        return f"{', '.join(parts)}; {self.slots} slot(s) of {self.images} pictures, total {_mb(self.total)}"


@dataclass(frozen=True)
class ProcessMemory:
    """What the kernel says of this process, in bytes; ``pss`` counts a shared page by its share, so mappings once."""

    pss: int
    anonymous: int
    file: int


def process_memory() -> ProcessMemory | None:
    """This process now; None where the system does not tell (anything but Linux)."""
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return None
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", rollup.read_text(), re.MULTILINE))
    return ProcessMemory(*(int(found.get(key, 0)) * 1024 for key in ("Pss", "Anonymous", "Pss_File")))


def give_back() -> None:
    """Hand memory that was freed back to the system: glibc keeps it otherwise, for a process that may not want it."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
