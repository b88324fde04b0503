from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nextscale.compare.judge import verdict
from nextscale.compare.parity import PictureParity, PictureStep

TOLERANCE = 1e-4


def picture(error: float = 1e-6, spread: float = 0.5, pixels: float = 0.0, moves: float | None = None) -> PictureParity:
    """Two steps, the second with that error."""
    steps = (PictureStep(1e-7, spread, 1.0, 1.0), PictureStep(error, spread, 1.0, 0.5))
    return PictureParity(steps, pixels, moves)


def test_errors_are_in_units_of_the_larger_of_one_and_the_spread() -> None:
    assert picture(2e-4, spread=4.0).error == pytest.approx(5e-5)
    assert picture(2e-4, spread=0.1).error == pytest.approx(2e-4)


def test_parity_holds_within_the_tolerance() -> None:
    found = verdict("b", [picture(), picture(9e-5)], TOLERANCE)
    assert (found.held, found.within, found.undecided, found.wrong) == (True, 2, 0, 0)
    assert (found.where, found.error) == ("step_01", 9e-5)


def test_few_equal_tokens_are_no_fault() -> None:
    apart = PictureParity((PictureStep(1e-6, 1.0, 0.2, 0.0),), 0.0)
    assert verdict("b", [apart], TOLERANCE).held


@pytest.mark.parametrize("bad", [picture(2e-4), picture(math.nan), picture(math.inf), picture(pixels=1e-3)])
def test_one_wrong_picture_is_enough(bad: PictureParity) -> None:
    found = verdict("b", [picture()] * 15 + [bad], TOLERANCE)
    assert not found.held
    assert found.wrong == 1
    assert "1 of 16 pictures differ" in found.sentence


def test_a_picture_that_depends_on_how_it_is_made_is_wrong_however_little_and_whatever_eager_does() -> None:
    odd = replace(picture(1e-6, moves=0.2), apart=1e-7)
    found = verdict("b", [picture()] * 3 + [odd], TOLERANCE)
    assert (found.held, found.wrong, found.undecided) == (False, 1, 0)
    assert "1 of 4 pictures made whole differ from the same made step by step, by as much as 1e-07" in found.sentence


def test_the_pixels_are_the_decoders() -> None:
    assert verdict("b", [picture(pixels=1e-3)], TOLERANCE).where == "decode"


def test_what_eager_itself_does_not_decide_is_set_aside() -> None:
    found = verdict("b", [picture(), picture(), picture(0.3, moves=0.2)], TOLERANCE)
    assert (found.held, found.undecided, found.error) == (True, 1, 1e-6)
    assert "1 of 3 set aside" in found.sentence


def test_a_picture_that_eager_does_decide_is_not_set_aside() -> None:
    assert not verdict("b", [picture(), picture(), picture(0.3, moves=2e-5)], TOLERANCE).held


def test_nothing_is_proved_where_most_is_undecided() -> None:
    found = verdict("b", [picture(), picture(0.3, moves=0.2)], TOLERANCE)
    assert not found.held
    assert found.error == 0.3
