"""Resizing in a model: every mode that a plan may name, on the device of the map."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.drawn import OBLONG, drawn_eager, full_plan

from nextscale.export.eager import Request
from nextscale.export.models.resize import Resize
from nextscale.export.names import bundle_name, rule_of
from nextscale.plan.errors import InputError
from nextscale.plan.resize import RESIZES
from nextscale.plan.validate import find_problems


def test_a_plan_may_name_bilinear_in_both_directions() -> None:
    """The second step by hand, without phi: the resized codes are added, the resized code sum is handed on."""
    plan = full_plan(schedule=OBLONG)
    steps = [replace(s, next_input=replace(s.next_input, up="bilinear", down="bilinear", phi=None)) for s in plan.steps]
    plan = replace(plan, steps=tuple(steps))
    assert find_problems(plan) == []
    eager = drawn_eager(plan)
    first, second, *_ = eager.stream(Request([1]))
    codes = eager.vae.quantize.codes(second.prediction.tokens, OBLONG[1])
    total = first.prediction.code_sum + F.interpolate(codes, OBLONG[-1], mode="bilinear")
    torch.testing.assert_close(second.prediction.code_sum, total, rtol=1e-4, atol=1e-4)
    wanted = F.interpolate(total, OBLONG[2], mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(second.prediction.next_map, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", RESIZES)
def test_matrices_lie_where_the_map_does_and_have_a_name_in_a_bundle(mode: str) -> None:
    resize = Resize()
    assert resize(torch.empty(1, 2, 2, 3, device="meta"), (4, 3), mode).shape == (1, 2, 4, 3)
    assert [(name, matrix.device.type) for name, matrix in resize.named_buffers()] == [(f"{mode}_2_4", "meta")]
    name = bundle_name(f"quantize.resize.{mode}_2_4")
    assert name == f"derived/{mode}_2_4"
    assert rule_of(name)


def test_an_unknown_mode() -> None:
    with pytest.raises(InputError, match="resize mode 'lanczos' is unknown"):
        Resize()(torch.zeros(1, 1, 2, 2), (4, 4), "lanczos")
