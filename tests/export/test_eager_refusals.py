"""What the eager model is asked is checked as the runtime checks it: both sides of a comparison refuse the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.drawn import MODEL, drawn_eager, full_plan

from nextscale.export.eager import Request
from nextscale.plan.errors import InputError


@pytest.mark.parametrize("label", [-1, MODEL.classes + 1])
def test_a_label_that_the_model_lacks(label: int) -> None:
    with pytest.raises(InputError, match=rf"labels \[0, {label}\] are asked for; the model has 0\.\.{MODEL.classes}"):
        next(drawn_eager(full_plan()).stream(Request([0, label])))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"labels": ["a"]}, r"labels \['a'\] are asked for"),
    ({"labels": [1.5]}, r"labels \[1\.5\] are asked for"),
    ({"labels": []}, r"labels \[\] are asked for"),
    ({"seed": -1}, "seed is a whole number from 0"),
    ({"guidance_scale": math.nan}, "guidance_scale is a number above -1e.06 and up to 1e.06; found nan"),
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
        next(drawn_eager(full_plan()).stream(Request(**{"labels": [1, 4], **request_})))
