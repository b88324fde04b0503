"""Wall times of a chain's parts, on a CPU and on a GPU, where only the end waits."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch


class Clock:
    """Marks between parts; started when made. On a GPU marks are events, and nothing waits before :meth:`read`."""

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu, self._names = on_gpu, list[str]()
        if on_gpu:
            torch.cuda.synchronize()
        self._start = time.perf_counter()
        self._marks = [self._now()]

    def mark(self, name: str) -> None:
        """The part of that name ends here."""
        self._names.append(name)
        self._marks.append(self._now())

    def read(self) -> tuple[dict[str, float], float]:
        """Seconds of every part, and since the start until now, the GPU's work included."""
        if self._on_gpu:
            torch.cuda.synchronize()
        total = time.perf_counter() - self._start
        lengths = [a.elapsed_time(b) * 1e-3 if self._on_gpu else b - a for a, b in pairwise(self._marks)]
        return dict(zip(self._names, lengths, strict=True)), total

    def _now(self) -> Any:
        """A time in seconds, or an event in the GPU's stream."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
