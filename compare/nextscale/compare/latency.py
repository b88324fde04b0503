"""Wall times, summed up: a median, and the quartiles beside it, so that noise shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Times:
    """Seconds: median, lower and upper quartile of ``runs`` runs."""

    median: float
    low: float
    high: float
    runs: int


def times(seconds: Sequence[float]) -> Times:
    """Of one or more runs."""
    low, median, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return Times(float(median), float(low), float(high), len(seconds))
