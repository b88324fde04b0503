"""What a caller gives: checked before anything runs, with the name of what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline
from nextscale.runtime.request import make_request, passes

GOOD: list[Any] = [None, None, None, None]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"subjects": []}, "no labels"),
    ({"subjects": [3]}, "labels are 0 to 2, or None for no class; found 3"),
    ({"subjects": [-1]}, "found -1"),
    ({"subjects": [1.0]}, r"found 1\.0"),
    ({"subjects": True}, "found True"),
    ({"subjects": "hexagon"}, "'hexagon' is none of circle, square, star"),
    ({"subjects": ["0"]}, "'0' is none of circle"),
    ({"seed": -1}, "seed is a whole number from 0"),
    ({"seed": 2**63}, "seed is a whole number"),
    ({"seed": 1.5}, r"seed is a whole number from 0 to 2\*\*63 - 1; found 1\.5"),
    ({"first_image": -1}, "first_image is a whole number"),
    ({"guidance_scale": float("nan")}, "guidance_scale is a number above -1e.06 and up to 1e.06; found nan"),
    ({"guidance_scale": float("inf")}, "found inf"),
    ({"guidance_scale": [1.0]}, "one number, one for each of 2 pictures, or for each .* every scale; found 1"),
    ({"guidance_scale": [[1.0] * 4, [1.0] * 3]}, "by scale has 4 numbers, one for every scale; found 3"),
    ({"guidance_scale": [[1.0] * 4, [1.0, 2.0, "3", 4.0]]}, "guidance_scale is a number above .*found '3'"),
    ({"guidance_scale": [1.0, [[2.0], 2.0, 2.0, 2.0]]}, r"guidance_scale is a number above .*found \[2\.0\]"),
    ({"top_p": [0.5]}, "top_p: one number, or one for each of 2 pictures; found 1"),
    ({"top_p": [[0.5] * 4, 0.5]}, "top_p is a number above 0 and up to 1; found"),
    ({"guidance_scale": "4"}, "guidance_scale"),
    ({"guidance_scale": True}, "found True"),
    ({"top_p": 0}, "top_p is a number above 0 and up to 1; found 0"),
    ({"top_p": 1.01}, r"found 1\.01"),
    ({"temperature": 0.0}, "temperature is a number above 1e-06"),
    ({"temperature": -1}, "temperature is a number"),
    ({"tokens": GOOD[:3]}, "for each of 4 steps; found 3"),
    ({"tokens": [np.zeros((2, 2), int), *GOOD[1:]]}, r"tokens of step 0 are whole numbers of shape \(2, 1\)"),
    ({"tokens": [np.zeros((2, 1)), *GOOD[1:]]}, r"found float64 \(2, 1\)"),
    ({"tokens": [np.full((2, 1), 11), *GOOD[1:]]}, r"-1 \(sample it\) to 10"),
    ({"tokens": [np.full((2, 1), -2), *GOOD[1:]]}, r"-1 \(sample it\) to 10"),
]


@pytest.mark.parametrize("given_, message", WRONG, ids=[str(w[0])[:40] for w in WRONG])
def test_what_is_wrong_is_named(pipeline: Pipeline, given_: dict[str, Any], message: str) -> None:
    options = {"subjects": [0, 1], **given_}
    for call in (pipeline.generate, pipeline.stream):  # a stream refuses now, not at its first step
        with pytest.raises(InputError, match=message):
            call(**options)


def test_labels_may_be_numbers_names_or_nothing(pipeline: Pipeline) -> None:
    manifest = pipeline.manifest
    assert make_request(manifest, [0, "star", None, np.int64(1)]).subjects.names == (0, 2, 3, 1)
    assert make_request(manifest, np.array([2, 0])).subjects.names == (2, 0)
    assert make_request(manifest, "square").subjects.names == (1,)
    assert make_request(manifest, None).subjects.names == (3,)


def test_guidance_is_the_plans_line(pipeline: Pipeline) -> None:
    """VAR's ramp over four scales: (1 + t) and -t with t = scale * k / 3."""
    request = make_request(pipeline.manifest, [0, 1], guidance_scale=[3.0, 6.0])
    weights = [request.guidance(pipeline.manifest.plan, step) for step in pipeline.manifest.plan.steps]
    np.testing.assert_allclose(weights[0], [[1, 0], [1, 0]])
    np.testing.assert_allclose(weights[1], [[2, -1], [3, -2]], rtol=1e-6)
    np.testing.assert_allclose(weights[3], [[4, -3], [7, -6]], rtol=1e-6)
    assert weights[0].dtype == np.float32


def test_guidance_may_differ_by_scale(pipeline: Pipeline) -> None:
    """A list for a picture stands in place of its one number; a ramp (Infinity's, HART's) is such a list."""
    plan = pipeline.manifest.plan
    listed = make_request(pipeline.manifest, [0, 1, 2], guidance_scale=[[3.0] * 4, 6.0, [0.0, 3.0, 6.0, 9.0]])
    assert listed.guidance_scale == ((3.0,) * 4, (6.0,) * 4, (0.0, 3.0, 6.0, 9.0))
    plain = make_request(pipeline.manifest, [0, 1], guidance_scale=[3.0, 6.0])
    for step in plan.steps:
        np.testing.assert_array_equal(listed.guidance(plan, step)[:2], plain.guidance(plan, step))
        scale = listed.guidance_scale[2][step.scale]
        alone = make_request(pipeline.manifest, [2], guidance_scale=scale)
        np.testing.assert_array_equal(listed.guidance(plan, step)[2:], alone.guidance(plan, step))
    assert listed.part([2]).guidance_scale == ((0.0, 3.0, 6.0, 9.0),)


@given(st.integers(1, 60), st.sets(st.integers(1, 12), min_size=1))
def test_passes_cover_every_picture_once(count: int, sizes: set[int]) -> None:
    cut = list(passes(count, sorted(sizes)))
    assert [i for pictures, _ in cut for i in pictures] == list(range(count))
    for pictures, size in cut:
        assert size in sizes
        assert len(pictures) <= size
        assert not any(len(pictures) <= other < size for other in sizes)
    assert all(len(pictures) == max(sizes) for pictures, _ in cut[:-1])
