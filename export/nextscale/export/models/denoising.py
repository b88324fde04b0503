"""The schedule of HART's residual diffusion: a few of 1000 trained steps with cosine betas (the sheet's section 3.5).

Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (2021), sections 3.1 to 3.3 and 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nextscale.plan.errors import PlanError

TRAINED_STEPS = 1000
MAX_BETA = 0.999


@dataclass(frozen=True)
class Denoising:
    """One step from noise to sample: the trained step that it stands for, and its coefficients.

    ``x0 = x_part * x - eps_part * eps``; the mean is ``x0_weight * x0 + x_weight * x``, the log-variance lies between
    ``least`` and ``most``.
    """

    trained: int
    x_part: float
    eps_part: float
    x0_weight: float
    x_weight: float
    least: float
    most: float


def trained_steps(steps: int) -> list[int]:
    """Which of the 1000 trained steps are run, ascending: evenly spaced, the first and the last among them."""
    if not 2 <= steps <= TRAINED_STEPS:
        raise PlanError(f"a diffusion of {steps} steps is asked for: it has from 2 to {TRAINED_STEPS}")
    stride, places = (TRAINED_STEPS - 1) / (steps - 1), [0.0]
    while len(places) < steps:
        places.append(places[-1] + stride)
    return [round(place) for place in places]


def denoisings(steps: int) -> tuple[Denoising, ...]:
    """The schedule of ``steps`` steps in the order in which they are run, from noise on; computed in float64."""

    def left(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    n = TRAINED_STEPS
    betas = np.array([min(1 - left((i + 1) / n) / left(i / n), MAX_BETA) for i in range(n)])
    chosen = trained_steps(steps)
    kept = np.cumprod(1 - betas)[chosen]  # of the signal, after each step
    before = np.append(1.0, kept[:-1])
    beta = 1 - kept / before
    variance = beta * (1 - before) / (1 - kept)
    variance[0] = variance[1]  # it is 0 at the end of the chain, where no noise is added
    columns = (
        np.sqrt(1 / kept),
        np.sqrt(1 / kept - 1),
        beta * np.sqrt(before) / (1 - kept),
        (1 - before) * np.sqrt(1 - beta) / (1 - kept),
        np.log(variance),
        np.log(beta),
    )
    rows = np.stack(columns, axis=1).tolist()
    return tuple(Denoising(trained, *row) for trained, row in zip(chosen, rows, strict=True))[::-1]
