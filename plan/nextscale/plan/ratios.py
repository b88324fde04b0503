"""Infinity's schedules: for each aspect ratio one list of scales, of which smaller pictures use the first ones.

Fact sheet, section 2.2. Ratios are height over width, and grids count tokens. The fourteenth scale is not trained: it
is what FastVAR's authors go on to for zero-shot pictures of "2K". Comments of their code name it for four ratios; the
fifth here is one of them with sides exchanged.
"""

from __future__ import annotations

import math

from nextscale.plan.errors import InputError
from nextscale.plan.types import Grid

# How many scales make a picture of about so many pixels.
SCALES = {"0.06m": 7, "0.25m": 10, "0.60m": 12, "1m": 13, "2k": 14}
TRAINED = SCALES["1m"]


def _grids(text: str) -> tuple[Grid, ...]:
    """Grids as ``1x1 2x2 ...``."""
    return tuple((int(h), int(w)) for h, w in (grid.split("x") for grid in text.split()))


_TALL = {
    1.0: _grids("1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64"),
    1.25: _grids("1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56"),
    1.333: _grids("1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54"),
    1.5: _grids("1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52"),
    1.75: _grids("1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48"),
    2.0: _grids("1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45"),
    2.5: _grids("1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40"),
    3.0: _grids("1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37"),
}
_TALL_2K = {1.0: (84, 84), 1.333: (84, 63), 2.0: (120, 60)}


def _inverse(ratio: float) -> float:
    """Upstream's name of the ratio with height and width exchanged: cut after three decimals."""
    return math.floor(1000 / ratio) / 1000


def _lists() -> dict[float, tuple[Grid, ...]]:
    """All scales by ratio, tall ones first; wide ones are the same with sides exchanged."""
    tall = {ratio: (*grids, *([_TALL_2K[ratio]] if ratio in _TALL_2K else [])) for ratio, grids in _TALL.items()}
    wide = {_inverse(ratio): tuple((w, h) for h, w in grids) for ratio, grids in tall.items() if ratio > 1}
    return {**tall, **wide}


RATIOS: dict[float, tuple[Grid, ...]] = _lists()


def infinity_schedule(pixels: str, ratio: float = 1.0) -> tuple[Grid, ...]:
    """The schedule of ``0.06m``, ``0.25m``, ``0.60m``, ``1m`` or ``2k`` pixels, of the ratio nearest to ``ratio``.

    Raises :class:`InputError` for another size, a ratio beyond 1/4 to 4, or a ratio that has no schedule of 2K.
    """
    if pixels.lower() not in SCALES:
        raise InputError(f"Infinity has no schedule for {pixels!r} pixels; it has {', '.join(SCALES)}")
    if not 0.25 <= ratio <= 4:
        raise InputError(f"an aspect ratio of {ratio:g} is asked for; height over width may be from 0.25 to 4")
    nearest = min(RATIOS, key=lambda known: abs(known - ratio))
    count = SCALES[pixels.lower()]
    if len(RATIOS[nearest]) < count:
        known = ", ".join(f"{each:g}" for each, grids in sorted(RATIOS.items()) if len(grids) >= count)
        raise InputError(f"there is no schedule of {pixels} for the aspect ratio {nearest:g}, only for {known}")
    return RATIOS[nearest][:count]


def size_and_ratio(schedule: tuple[Grid, ...]) -> tuple[str, float] | None:
    """Which of Infinity's schedules this is, None for another."""
    for ratio, grids in RATIOS.items():
        for pixels, count in SCALES.items():
            if schedule == grids[:count] and len(schedule) == count:
                return pixels, ratio
    return None


def at_ratio(schedule: tuple[Grid, ...], ratio: float) -> tuple[Grid, ...]:
    """The schedule of as many pixels at another aspect ratio; raises :class:`InputError` where none is published."""
    found = size_and_ratio(schedule)
    if found is None:
        side = "x".join(map(str, schedule[-1]))
        raise InputError(f"a schedule that ends with {side} has no other aspect ratios: give its grids themselves")
    return infinity_schedule(found[0], ratio)


def rope_grid(schedule: tuple[Grid, ...]) -> Grid:
    """The grid whose places rotary positions count: the last trained one of the ratio, whatever runs of the list.

    (Fact sheet 2.4.) For a schedule that is none of Infinity's it is the last grid.
    """
    found = size_and_ratio(schedule)
    return schedule[-1] if found is None else RATIOS[found[1]][TRAINED - 1]
