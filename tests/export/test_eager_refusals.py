"""What the eager model is asked is checked as the runtime checks it: both sides of a comparison refuse the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.drawn import MODEL, drawn_eager, full_plan

from nextscale.export.eager import Request
from nextscale.plan.errors import InputError


@pytest.mark.parametrize("label", [-1, MODEL.classes + 1])
def test_a_label_that_the_model_lacks(label: int) -> None:
    last = MODEL.classes - 1
    with pytest.raises(InputError, match=rf"labels are 0 to {last}, or None for no class; found {label}"):
        next(drawn_eager(full_plan()).stream(Request([0, label])))


def test_the_null_class_is_the_number_behind_the_last_or_none() -> None:
    eager = drawn_eager(full_plan())
    for null in (MODEL.classes, np.int64(MODEL.classes), None):
        assert eager.given(Request([0, null]))["labels"].tolist() == [0, MODEL.classes]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"subjects": ["a"]}, "label 'a': this bundle has no class names; its labels are 0 to 4"),
    ({"subjects": [1.5]}, r"labels are 0 to 4, or None for no class; found 1\.5"),
    ({"subjects": []}, "no labels or prompts: one makes one picture"),
    ({"subjects": [True]}, "labels are 0 to 4, or None for no class; found True"),
    ({"negative": 1}, "a negative prompt is given, and this model is conditioned on classes: leave it out"),
    ({"seed": -1}, "seed is a whole number from 0"),
    ({"guidance_scale": math.nan}, "guidance_scale is a number above -1e.06 and up to 1e.06; found nan"),
    ({"guidance_scale": [1.0, 2.0]}, "guidance_scale by scale has 4 numbers, one for every scale; found 2"),
    ({"temperature": math.inf}, "temperature is a number above 1e-06 and up to 1e.06; found inf"),
    ({"temperature": 0.0}, r"found 0\.0"),
    ({"top_p": 1.01}, "top_p is a number above 0 and up to 1; found 1.01"),
    ({"top_p": "1"}, "top_p is a number"),
    ({"tokens": {0: torch.full((2, 1), -5)}}, rf"tokens of step 0 are -1 \(sample it\) to {MODEL.vocabulary - 1}"),
    (
        {"tokens": {0: torch.full((2, 1), MODEL.vocabulary)}},
        rf"tokens of step 0 are -1 \(sample it\) to {MODEL.vocabulary - 1}",
    ),
    ({"tokens": {1: torch.zeros(2, 1).int()}}, r"tokens of step 1 are whole numbers of shape \(2, 4\); found int32"),
    ({"tokens": {0: torch.zeros(2, 1)}}, "tokens of step 0 are whole numbers"),
    ({"tokens": {9: torch.zeros(2, 1).int()}}, r"tokens are forced at steps \[9\]; the plan has 4, from 0"),
]


@pytest.mark.parametrize(
    ("request_", "message"), REFUSED, ids=[f"{name} {i}" for i, (asked, _) in enumerate(REFUSED) for name in asked]
)
def test_what_the_runtime_refuses_is_refused(request_: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(drawn_eager(full_plan()).stream(Request(**{"subjects": [1, 4], **request_})))
