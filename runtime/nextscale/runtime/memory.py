"""Where memory goes: what a pipeline reserves, by cause, and what the process holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemoryReport:
    """Bytes by cause. ``weights`` is one mapped file for all graphs and slots; ``slot`` is one slot's buffers.

    Slots are sized for ``images`` pictures in a pass; pages of them that no pass has touched cost nothing. Scratch of
    the backend comes on top: the largest graph's, once.
    """

    weights: int
    slot: Mapping[str, int]
    slots: int
    images: int

    @property
    def total(self) -> int:
        """Weights and all slots' buffers."""
        return self.weights + self.slots * sum(self.slot.values())

    def __str__(self) -> str:
        lines = [f"weights (one copy) {_mb(self.weights)}"]
        lines += [f"{cause} {_mb(size)}" for cause, size in self.slot.items()]
        return f"{', '.join(lines)}; {self.slots} slot(s) of {self.images} pictures, total {_mb(self.total)}"


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


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
