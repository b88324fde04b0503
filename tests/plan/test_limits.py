"""Limits of TensorRT that a plan runs into are told in sentences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nextscale.plan.limits import limits
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import RECIPES, plan_for, recipe
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Plan, Sampling


def var_1024(ratio: float) -> Plan:
    entry = replace(recipe("var-d16"), schedule=schedule("var-1024"))
    return FastVAR({13: ratio}, cache_scale=11)(plan_for(entry))


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_have_none(name: str) -> None:
    assert limits(plan_for(recipe(name))) == []


def test_sampling() -> None:
    entry = recipe("var-d16")
    found = limits(plan_for(entry, sampling=Sampling(0)))
    assert len(found) == 10
    assert found[9] == (
        "step 9 sorts all 4096 codes for top-p, and TensorRT's TopK takes up to 3840: set top_k between 1 and 3840"
    )
    assert "samples from the top 4000" in limits(plan_for(entry, sampling=Sampling(4000)))[0]
    assert limits(plan_for(entry, sampling=Sampling(0, ("guidance", "temperature")))) == []
    assert limits(plan_for(entry, sampling=Sampling(3840))) == []


def test_kept_tokens() -> None:
    assert limits(var_1024(0.05)) == [
        "step 13 keeps 3892 of 4096 tokens, and TensorRT's TopK takes up to 3840: select the pruned ones instead (204)"
    ]
    assert limits(var_1024(0.0625)) == []  # 3840 exactly
