"""Scale schedules, and what follows from a scale's place in one: the phi index and VAR's guidance ramp."""

from __future__ import annotations

import numpy as np

from nextscale.plan.errors import InputError
from nextscale.plan.ratios import RATIOS, SCALES, infinity_schedule
from nextscale.plan.types import Grid, Guidance


def squares(*sides: int) -> tuple[Grid, ...]:
    """Square grids of these sides."""
    return tuple((side, side) for side in sides)


# Published schedules of square pictures (fact sheet 1.1, 2.2 and 3.1). HART has the numbers of a VAR at 1024 px.
SCHEDULES: dict[str, tuple[Grid, ...]] = {
    "var-256": squares(1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "var-512": squares(1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    "var-1024": squares(1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
    **{f"infinity-{pixels}": infinity_schedule(pixels) for pixels in SCALES},
}
SCHEDULES["hart-1024"] = SCHEDULES["var-1024"]


def schedule(name: str) -> tuple[Grid, ...]:
    """The schedule of that name, ``(h, w)`` per scale; raises :class:`InputError` for an unknown name.

    An aspect ratio may stand behind the names of Infinity's: ``infinity-1m-0.75`` is three high and four wide.
    """
    if name in SCHEDULES:
        return SCHEDULES[name]
    square, _, ratio = name.rpartition("-")
    known = {f"{each:g}": each for each in RATIOS}
    if square.startswith("infinity-") and square in SCHEDULES and ratio in known:
        return infinity_schedule(square.removeprefix("infinity-"), known[ratio])
    raise InputError(
        f"schedule {name!r} is unknown; known are {', '.join(SCHEDULES)}, and those of Infinity with an aspect ratio "
        f"behind, as in infinity-1m-0.75: {', '.join(known)}"
    )


def tokens(grid: Grid) -> int:
    """Tokens of a grid."""
    return grid[0] * grid[1]


def scale_ratio(scale: int, scales: int) -> float:
    """How far along the schedule a scale is: 0 at the first, 1 at the last."""
    if scales < 2 or not 0 <= scale < scales:
        raise InputError(f"scale {scale} of {scales} scales: there must be 2 scales or more, counted from 0")
    return scale / (scales - 1)


def phi_index(scale: int, scales: int, phi: int = 4) -> int:
    """Which of the ``phi`` shared residual convolutions serves a scale (fact sheet 1.3).

    ``phi`` ticks are spread over 0 .. 1 and the nearest to the scale's ratio is taken, the first where two are equally
    near. With the published schedules two scales lie half-way between ticks and rounding decides, so the order of the
    float64 operations here is part of the rule.
    """
    if phi < 1:
        raise InputError(f"{phi} residual convolutions asked for: there must be 1 or more")
    ratio = scale_ratio(scale, scales)
    margin = 1 / 3 / phi if phi == 4 else 1 / 2 / phi
    ticks = np.linspace(margin, 1 - margin, phi)
    return int(np.argmin(np.abs(ticks - ratio)))


def var_guidance(schedule: tuple[Grid, ...]) -> Guidance:
    """VAR's guidance (fact sheet 1.5): ``(1+t) conditional - t unconditional``, ``t = guidance_scale * ratio``."""
    ratios = [scale_ratio(scale, len(schedule)) for scale in range(len(schedule))]
    return Guidance(
        rows=("conditional", "unconditional"),
        weights=tuple(((1.0, ratio), (0.0, -ratio)) for ratio in ratios),
    )
