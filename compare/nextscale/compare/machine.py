"""Where and with what a comparison ran: no figure means anything without it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

GPU_PACKAGES = ("tensorrt", "tensorrt-rtx-cu13", "cuda-core")
PACKAGES = ("nextscale", "torch", "triton", "onnxruntime", "onnxruntime-gpu", "numpy", *GPU_PACKAGES)
LOOK = 0.5  # seconds


@dataclass(frozen=True)
class Machine:
    """``cores`` are those this process may use; ``busy`` those that other work kept busy meanwhile, None: unknown."""

    processor: str
    cores: int
    system: str
    python: str
    versions: dict[str, str]
    busy: float | None
    date: str

    @property
    def warning(self) -> str | None:
        """One sentence where other work must have disturbed the times; None where it cannot have by much."""
        if self.busy is None or self.busy < 0.1 * self.cores:
            return None
        return (
            f"other work kept {self.busy:.1f} cores of this machine busy meanwhile, so times are too long and may "
            "mislead: measure again on a quiet machine"
        )


class OtherWork:
    """How busy everyone but this process and its children keeps the machine, from the making of this object on."""

    def __init__(self) -> None:
        self._before, self._own, self._start = _ticks(), _worked(), time.perf_counter()

    def cores(self) -> float | None:
        """Cores, on average until now, time stolen by a host included; None where the system does not tell."""
        now = _ticks()
        if self._before is None or now is None:
            return None
        spent = [b - a for a, b in zip(self._before, now, strict=True)]
        idle, total = spent[3] + spent[4], max(sum(spent), 1)  # idle and waiting for the disk
        own = (_worked() - self._own) / (time.perf_counter() - self._start)
        return round(max(0.0, (1 - idle / total) * (os.cpu_count() or 1) - own), 2)


def this_machine(other_work: OtherWork | None = None) -> Machine:
    """This one, with what ``other_work`` saw; without it, takes half a second of doing nothing to see who works."""
    if other_work is None:
        other_work = OtherWork()
        time.sleep(LOOK)
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions={name: found for name in PACKAGES if (found := _version(name))},
        busy=other_work.cores(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def driver_version() -> str | None:
    """NVIDIA's driver, as its own tool says; None where that is not there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(query, capture_output=True, text=True, check=False)
    return next(iter(asked.stdout.split()), None) if asked.returncode == 0 else None


def _worked() -> float:
    """Seconds of work by this process and its children that have ended, such as compilers."""
    return sum(os.times()[:4])


def _ticks() -> list[int] | None:
    """user, nice, system, idle, iowait, irq, softirq, steal of all cores together, in ticks since the start."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    return [int(field) for field in stat.read_text(encoding="ascii").splitlines()[0].split()[1:9]]


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
