"""Where and with what a comparison ran: no figure means anything without it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("nextscale", "torch", "onnxruntime", "onnxruntime-gpu", "numpy")


@dataclass(frozen=True)
class Machine:
    """``cores`` are those this process may use; ``load`` the work waiting for them when it began (None: unknown)."""

    processor: str
    cores: int
    system: str
    python: str
    versions: dict[str, str]
    load: float | None
    date: str

    @property
    def busy(self) -> str | None:
        """One sentence where other work must have disturbed the times; None where it cannot have by much."""
        if self.load is None or self.load <= 0.3 * self.cores:
            return None
        return (
            f"other work kept {self.load:.1f} of this machine's {self.cores} cores busy when this began, so times are "
            "too long and may mislead: measure again on a quiet machine"
        )


def this_machine() -> Machine:
    """This one, now."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: found for name in PACKAGES if (found := _version(name))},
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
