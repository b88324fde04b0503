from __future__ import annotations

import numpy as np
import pytest

from nextscale.compare.grid import labelled_grid


def flat(colour: tuple[int, int, int], side: int) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


@pytest.mark.parametrize(("side", "shown"), [(8, 112), (64, 128), (256, 256)])
@pytest.mark.parametrize("count", [1, 4, 5])
def test_every_picture_is_there_in_whole(count: int, side: int, shown: int) -> None:
    pairs = [[flat((255, i, 0), side), flat((0, i, 255), side)] for i in range(count)]
    sheet = np.asarray(labelled_grid(("a", "b"), [f"label {i}" for i in range(count)], pairs, "title"))
    for pair in pairs:
        for picture in pair:
            found = np.argwhere((sheet == picture[0, 0]).all(axis=-1))
            assert len(found) == shown * shown
            assert (found.max(axis=0) - found.min(axis=0) + 1).tolist() == [shown, shown]


def test_groups_stand_in_reading_order() -> None:
    pairs = [[flat((255, i, 0), 64)] for i in range(5)]
    sheet = np.asarray(labelled_grid(("a",), ["x"] * 5, pairs, "title", across=4))
    corners = [np.argwhere((sheet == (255, i, 0)).all(axis=-1))[0].tolist() for i in range(5)]
    assert corners[:4] == sorted(corners[:4])
    assert len({y for y, _ in corners[:4]}) == 1
    assert corners[4][0] > corners[0][0]
    assert corners[4][1] == corners[0][1]
