"""Models that contradict themselves, their text or the tokenizer are refused in a sentence that says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nextscale.plan.agreement import disagreements
from nextscale.plan.errors import PlanError
from nextscale.plan.families.hart import hart_model
from nextscale.plan.recipes import RECIPES, plan_for, recipe
from nextscale.plan.types import Diffusion, Plan, Sampling, Step, Text
from nextscale.plan.validate import find_problems, validate


def infinity(**model: Any) -> Plan:
    return changed("infinity-125m-0.25m", **model)


def hart(**model: Any) -> Plan:
    return changed("hart-1024", **model)


def changed(name: str, **model: Any) -> Plan:
    """A recipe's plan with other numbers of its model, and nothing else that would follow from them."""
    plan = plan_for(recipe(name))
    return replace(plan, models=(("var", replace(plan.model(), **model)),))


def tokenized(name: str, **tokenizer: Any) -> Plan:
    plan = plan_for(recipe(name))
    return replace(plan, tokenizer=replace(plan.tokenizer, **tokenizer))


def with_last(name: str, **changes: Any) -> Plan:
    plan = plan_for(recipe(name))
    last: Step = replace(plan.steps[-1], **changes)
    return replace(plan, steps=(*plan.steps[:-1], last))


REFUSED: list[tuple[Plan, str]] = [
    # codes
    (infinity(bits=0), "draws 0 bits a token, and the tokenizer takes one for each of 32 channels"),
    (infinity(bits=16), "draws 16 bits a token, and the tokenizer takes one for each of 32 channels"),
    (infinity(vocabulary=4), "predicts 4 codes of 32 channels, the tokenizer has 2 of 32"),
    (infinity(code_channels=31), "predicts 2 codes of 31 channels, the tokenizer has 2 of 32"),
    (
        tokenized("infinity-8b-1m", patch=1),
        "predicts 2 codes of 56 channels, the tokenizer has 2 of 14",
    ),
    (
        changed("infinity-8b-1m", code_channels=14, bits=14),
        "predicts 2 codes of 14 channels, the tokenizer has 2 of 14 in each of 4 latents",
    ),
    (hart(bits=32), "draws 32 bits a token, and the tokenizer has a codebook: it takes one code a token"),
    (
        replace(tokenized("hart-1024", codebook=False), models=(("var", replace(hart_model(), bits=32)),)),
        "draws bits from a vocabulary of 4096: a bit has 2 values",
    ),
    (tokenized("hart-1024", patch=0), "the tokenizer has patches of 0 latents"),
    # text
    (infinity(text=None), "has cross-attention, 'ca', and no text of the use 'cross'"),
    (infinity(text=Text(512, 2048, "prefix")), "has cross-attention, 'ca', and no text of the use 'cross'"),
    (infinity(text=Text(512, 2048, "suffix")), "uses its text as 'suffix', which is none of cross, prefix"),
    (infinity(sub_layers=("sa", "ffn")), r"has a text to attend to, and no 'ca' among its sub-layers \['sa', 'ffn'\]"),
    (infinity(text=Text(0, 2048)), "has a text of 0 vectors of 2048 numbers"),
    (hart(text=None), "counts positions from its text, and has no text of the use 'prefix'"),
    (hart(text=Text(299, 1536, "prefix")), "step 0: 300 tokens go in, and the text that they are has 299"),
    # other numbers
    (infinity(heads=7), "has 7 heads of 96, which are not its width 768"),
    (infinity(adaln=False), "shares adaLN parameters, and its blocks have none"),
    (infinity(rope="circle"), "has the rope 'circle', which is none of none, grid, text"),
    (infinity(rope_grid=None), "has rotary positions on a grid, and no rope_grid"),
    (infinity(rope_grid=(0, 64)), r"has the rope_grid \(0, 64\), of which its rope 'grid' can count no places"),
    (infinity(rope="none"), r"has the rope_grid \(64, 64\), of which its rope 'none' can count no places"),
    (infinity(head_dim=6, heads=128), "has heads of 6: rotary positions on two axes need a multiple of 4"),
    (infinity(chunks=5), "has 12 blocks, which are not 5 groups of as many"),
    (infinity(ffn_width=0), "has 12 layers, width 768, 8 heads, an FFN of 0: each must be 1 or more"),
    (hart(diffusion=Diffusion(64, 2, 0)), "has a residual diffusion without width or blocks, or of fewer than 2 steps"),
    # what a step asks of its model
    (hart(diffusion=None), "step 13: its codes are to be refined, and it runs a model that has no residual diffusion"),
    (
        with_last("hart-1024", sampling=None, tokens_out=0),
        "step 13: its codes are to be refined, and it draws no codes",
    ),
    (
        with_last("infinity-125m-0.25m", sampling=Sampling(0, smooth=True)),
        "step 9: codes are to be mixed, and the tokenizer has no codebook: smooth needs one",
    ),
    (
        with_last("hart-1024", sampling=Sampling(0, smooth=True, smooth_ratio=1.5)),
        "step 13: smooth_ratio is 1.5: how far along the schedule a step is, from 0 to 1",
    ),
    (with_last("infinity-125m-0.25m", sampling=Sampling(3)), "step 9: top_k is 3, of a vocabulary of 2"),
    (
        with_last(
            "infinity-125m-0.25m",
            next_input=replace(plan_for(recipe("infinity-125m-0.25m")).steps[-1].next_input, phi=0),
        ),
        "step 9: phi 0 is asked for, the tokenizer has 0",
    ),
]


@pytest.mark.parametrize(("plan", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_what_cannot_be_is_refused(plan: Plan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        validate(plan)


def test_the_weight_set_is_named() -> None:
    assert next(iter(disagreements(infinity(heads=7)))).startswith("model 'var' has 7 heads")
    assert find_problems(infinity(heads=7)) == list(disagreements(infinity(heads=7)))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_agree(name: str) -> None:
    assert list(disagreements(plan_for(recipe(name)))) == []


def test_a_text_position_may_count_on_a_grid_of_its_own() -> None:
    assert find_problems(hart(rope_grid=(64, 64))) == []
