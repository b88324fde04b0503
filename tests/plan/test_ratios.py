"""Infinity's schedules of every aspect ratio, by name and by the nearest ratio."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.errors import InputError
from nextscale.plan.ratios import RATIOS, SCALES, at_ratio, infinity_schedule, rope_grid, size_and_ratio
from nextscale.plan.schedules import SCHEDULES, schedule, squares, tokens

LAST = {
    1.0: (64, 64),
    1.25: (70, 56),
    1.333: (72, 54),
    1.5: (78, 52),
    1.75: (84, 48),
    2.0: (90, 45),
    2.5: (100, 40),
    3.0: (111, 37),
    0.8: (56, 70),
    0.75: (54, 72),
    0.666: (52, 78),
    0.571: (48, 84),
    0.5: (45, 90),
    0.4: (40, 100),
    0.333: (37, 111),
}


def test_every_ratio_has_its_schedule_and_inverse_ones_are_cut_to_three_decimals() -> None:
    assert {ratio: grids[12] for ratio, grids in RATIOS.items()} == LAST


@pytest.mark.parametrize("ratio", LAST)
@pytest.mark.parametrize("pixels", ["0.06m", "0.25m", "0.60m", "1m"])
def test_a_schedule_has_a_name_and_about_so_many_pixels(pixels: str, ratio: float) -> None:
    grids = schedule(f"infinity-{pixels}" + ("" if ratio == 1 else f"-{ratio:g}"))
    assert grids == infinity_schedule(pixels, ratio)
    assert len(grids) == SCALES[pixels]
    assert grids[:2] == ((1, 1), (2, 2))
    assert all(tokens(a) < tokens(b) and a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(grids))
    wanted = {"0.06m": 256, "0.25m": 512, "0.60m": 768, "1m": 1024}[pixels] ** 2
    assert 0.75 < tokens(grids[-1]) * 256 / wanted < 1.34
    assert grids[-1][0] / grids[-1][1] == pytest.approx(ratio, rel=0.04)
    assert size_and_ratio(grids) == (pixels, ratio)


def test_tokens_of_the_square_ones() -> None:
    sums = list(accumulate(tokens(grid) for grid in schedule("infinity-1m")))
    assert [sums[SCALES[pixels] - 1] for pixels in ("0.06m", "0.25m", "0.60m", "1m")] == [521, 2521, 6425, 10521]


@given(ratio=st.floats(0.26, 3.9))
def test_the_nearest_ratio_is_taken(ratio: float) -> None:
    found = size_and_ratio(infinity_schedule("1m", ratio))
    assert found is not None
    assert abs(found[1] - ratio) == min(abs(known - ratio) for known in LAST)


@pytest.mark.parametrize(("ratio", "last"), [(1, (84, 84)), (0.5, (60, 120)), (2, (120, 60)), (1.333, (84, 63))])
def test_2k_is_one_scale_more(ratio: float, last: tuple[int, int]) -> None:
    grids = infinity_schedule("2k", ratio)
    assert grids[:13] == infinity_schedule("1m", ratio)
    assert grids[13:] == (last,)


@pytest.mark.parametrize("pixels", ["0.06m", "0.25m", "0.60m", "1m"])
def test_positions_count_the_places_of_the_last_trained_grid(pixels: str) -> None:
    for ratio, last in LAST.items():
        assert rope_grid(infinity_schedule(pixels, ratio)) == last
    assert rope_grid(schedule("infinity-2k-0.5")) == (45, 90)


def test_a_schedule_of_ones_own_counts_its_own_last_grid() -> None:
    assert rope_grid(squares(1, 2, 4, 6)) == (6, 6)  # as an Infinity starts, and none of its sizes
    assert rope_grid(((1, 1), (3, 5))) == (3, 5)
    assert size_and_ratio(schedule("var-256")) is None


def test_the_same_size_at_another_ratio() -> None:
    assert at_ratio(schedule("infinity-0.25m"), 1.4) == schedule("infinity-0.25m-1.333")
    assert at_ratio(schedule("infinity-1m-0.75"), 1) == schedule("infinity-1m")
    with pytest.raises(InputError, match="a schedule that ends with 16x16 has no other aspect ratios"):
        at_ratio(schedule("var-256"), 1.5)


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"no schedule for '2m' pixels; it has 0\.06m, 0\.25m, 0\.60m, 1m, 2k"):
        infinity_schedule("2m")
    for ratio in (0.1, 5.0, math.nan, math.inf, -1.0):
        with pytest.raises(InputError, match=r"an aspect ratio of .* may be from 0\.25 to 4"):
            infinity_schedule("1m", ratio)
    with pytest.raises(
        InputError, match=r"no schedule of 2k for the aspect ratio 3, only for 0\.5, 0\.75, 1, 1\.333, 2"
    ):
        infinity_schedule("2k", 3)
    for name in ("infinity-1m-0.7", "infinity-5m-0.75", "var-256-0.75", "infinity-1m-"):
        with pytest.raises(
            InputError, match=r"known are var-256, .*hart-1024, and those of Infinity with .*: 1, 1\.25,"
        ):
            schedule(name)


def test_names_without_a_ratio_are_listed() -> None:
    assert list(SCHEDULES)[:3] == ["var-256", "var-512", "var-1024"]
    assert {f"infinity-{pixels}" for pixels in SCALES} <= set(SCHEDULES)
    assert SCHEDULES["hart-1024"] == SCHEDULES["var-1024"]
