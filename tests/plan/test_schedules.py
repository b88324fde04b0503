"""Schedules, phi indices and guidance weights against the fact sheet's tables."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.errors import InputError
from nextscale.plan.schedules import phi_index, scale_ratio, schedule, tokens, var_guidance


@pytest.mark.parametrize(
    ("name", "cumulative"),
    [
        ("var-256", [1, 5, 14, 30, 55, 91, 155, 255, 424, 680]),
        ("var-512", [1, 5, 14, 30, 66, 147, 316, 640, 1216, 2240]),
        ("infinity-1m", [1, 5, 21, 57, 121, 265, 521, 921, 1497, 2521, 4121, 6425, 10521]),
    ],
)
def test_cumulative_tokens(name: str, cumulative: list[int]) -> None:
    assert list(accumulate(tokens(grid) for grid in schedule(name))) == cumulative


def test_the_long_schedule_has_9451_tokens() -> None:
    assert sum(tokens(grid) for grid in schedule("var-1024")) == 9451


def test_an_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'var-42' is unknown; known are var-256, var-512"):
        schedule("var-42")


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        (10, "0 0 1 1 1 2 2 3 3 3"),
        (14, "0 0 0 1 1 1 1 2 2 2 2 3 3 3"),
        (13, "0 0 0 1 1 1 2 2 2 2 3 3 3"),
    ],
)
def test_phi_table(scales: int, expected: str) -> None:
    assert " ".join(str(phi_index(scale, scales)) for scale in range(scales)) == expected


@given(scales=st.integers(2, 20))
def test_one_phi_per_scale_gives_each_its_own(scales: int) -> None:
    assert [phi_index(scale, scales, scales) for scale in range(scales)] == list(range(scales))
    assert {phi_index(scale, scales, 1) for scale in range(scales)} == {0}


@given(scales=st.integers(2, 20), guidance=st.floats(0, 10))
def test_guidance_weights_give_vars_formula(scales: int, guidance: float) -> None:
    rule = var_guidance(((1, 1),) * scales)
    for scale, ((c0, c1), (u0, u1)) in enumerate(rule.weights):
        t = guidance * scale / (scales - 1)
        assert c0 + c1 * guidance == pytest.approx(1 + t)
        assert u0 + u1 * guidance == pytest.approx(-t)
    assert rule.weights[0] == ((1.0, 0.0), (0.0, 0.0))  # no guidance at the first scale


def test_a_scale_outside_the_schedule_is_refused() -> None:
    with pytest.raises(InputError, match="scale 10 of 10"):
        scale_ratio(10, 10)
    with pytest.raises(InputError, match="2 scales or more"):
        scale_ratio(0, 1)
    with pytest.raises(InputError, match="0 residual convolutions"):
        phi_index(0, 10, 0)
