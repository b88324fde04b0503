"""The scatter-restore kernel by itself: its time against what copying the same bytes takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nextscale.compare.gpu_check.findings import Figures
from nextscale.compare.restore_speed import SIZES, Speed, measure
from nextscale.runtime.backends.cuda import Device

AIM = 0.8  # of the copy's bandwidth
PARTS = ("float16", "float32", "bfloat16")  # of kept rows and caches; the residual stream is float32


def bandwidth(device: Device, quick: bool) -> Figures:
    """Share of the copy's bandwidth at every size; the least is told first."""
    speeds = [
        measure(device, size, part, "float32", runs=10 if quick else 30)
        for size in (SIZES[:1] if quick else SIZES)
        for part in (PARTS[:1] if quick else PARTS)
    ]
    least = min(speed.share for speed in speeds)
    return {"share_of_copy_bandwidth": least, "aim": AIM, "met": least >= AIM, "sizes": [_data(s) for s in speeds]}


def _data(speed: Speed) -> dict[str, Any]:
    return {
        "size": speed.size.name,
        "part": speed.part,
        "full": speed.full,
        "moved": speed.moved,
        "kernel": asdict(speed.kernel),
        "copy": asdict(speed.copy),
        "share": speed.share,
    }
