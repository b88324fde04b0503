"""The consistency check finds each kind of contradiction, and names its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from nextscale.plan.errors import PlanError
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import plan_for, recipe, var_model
from nextscale.plan.types import (
    Cache,
    Guidance,
    Layer,
    NextInput,
    Plan,
    RowGather,
    Sampling,
    Segment,
    Step,
    SubLayer,
    Tape,
    TapeWrite,
)
from nextscale.plan.validate import find_problems, validate


def pruned() -> Plan:
    """A plan of three layers and four scales: 1, 4, 9, 16 tokens, the last pruned to 8."""
    base = plan_for(
        recipe("demo"),
        model=var_model(3, 12, 3, vocabulary=512, code_channels=16),
        schedule=((1, 1), (2, 2), (3, 3), (4, 4)),
    )
    return FastVAR({3: 0.5}, cache_scale=2)(base)


def with_step(order: int, /, **changes: Any) -> Plan:
    plan = pruned()
    steps = list(plan.steps)
    steps[order] = replace(steps[order], **changes)
    return replace(plan, steps=tuple(steps))


def with_layer(order: int, index: int, change: Callable[[Layer], Layer]) -> Plan:
    layers = list(pruned().steps[order].layers)
    layers[index] = change(layers[index])
    return with_step(order, layers=tuple(layers))


def test_a_good_plan_has_no_problems() -> None:
    assert find_problems(pruned()) == []
    assert validate(pruned()) == pruned()
    assert find_problems(with_step(2, sampling=Sampling(0, ("temperature", "guidance")))) == []


BROKEN: list[tuple[Plan, str]] = [
    # names
    (replace(pruned(), tapes=pruned().tapes[:2]), "step 1 uses the unknown tape 'var.02'"),
    (replace(pruned(), tapes=(*pruned().tapes, pruned().tapes[0])), "tape 'var.00' is listed twice"),
    (replace(pruned(), caches=pruned().caches[1:]), "step 2 uses the unknown restore cache 'attn.00'"),
    (replace(pruned(), tapes=(*pruned().tapes, Tape("x", "var", 3, 1))), "'x' belongs to layer 3, and the model has 3"),
    (replace(pruned(), tapes=(*pruned().tapes, Tape("x", "vae", 0, 1))), "'x' belongs to the unknown weight set 'vae'"),
    (with_step(1, weight_set="draft"), "step 1 runs the unknown weight set 'draft'"),
    # guidance and sizes
    (replace(pruned(), guidance=Guidance(("conditional",), (((1.0, 0.0),),))), "guidance has weights for 1 scales"),
    (
        replace(pruned(), guidance=Guidance(("conditional",), (((1.0,),),) * 4)),
        "guidance at scale 0 needs 2 numbers for each of 1 rows",
    ),
    (replace(pruned(), models=(("var", var_model(3, 12, 3)),)), "model 'var' predicts 4096 codes of 32 channels"),
    (replace(pruned(), steps=()), "it has no steps"),
    # a step by itself
    (with_step(2, kind="jump"), "step 2: kind 'jump' is none of next_scale, prefill, mask"),
    (with_step(2, scale=4), "step 2: scale 4 is not in the schedule of 4"),
    (with_step(2, scale=1), r"step 2: grid \(3, 3\) is not the schedule's \(2, 2\)"),
    (with_step(2, tokens_out=8), "step 2: 8 tokens come out of a grid of 9"),
    (with_step(2, tokens_in=8), "step 2: 8 tokens go in and 9 come out"),
    (with_step(2, guidance_rows=3), "step 2: 3 guidance rows of 1 candidates cannot run"),
    (with_step(2, sampling=Sampling(513)), "step 2: top_k is 513, of a vocabulary of 512"),
    (with_step(2, sampling=Sampling(0, ("guidance", "top_q"))), "step 2: the sampling order .* must name each of"),
    *(
        (
            with_step(2, sampling=Sampling(9, ("guidance", *order))),
            "step 2: the sampling order .* name top_p right after",
        )
        for order in (("top_k",), ("top_p",), ("top_p", "top_k"), ("top_k", "temperature", "top_p"))
    ),
    (with_step(2, next_input=NextInput("guess", (4, 4))), "step 2: the next input's rule 'guess' is none of"),
    (
        with_step(2, next_input=NextInput("code_sum", (4, 4), up="cubic")),
        "step 2: the next input's resize mode 'cubic'",
    ),
    (
        with_step(2, next_input=NextInput("code_sum", (4, 4), down="lanczos")),
        "step 2: the next input's resize mode 'lanczos' is none of area, bicubic, bilinear",
    ),
    (with_step(2, next_input=NextInput("code_sum", (4, 4), phi=4)), "step 2: phi 4 is asked for, the tokenizer has 4"),
    (with_step(2, layers=()), r"step 2: its layers \[\] are not layers 0 to 2 in order"),
    (with_step(2, layers=pruned().steps[2].layers[::-1]), r"its layers \[2, 1, 0\] are not"),
    # a layer by itself
    (with_layer(3, 1, lambda x: replace(x, sub_layers=x.sub_layers[::-1])), r"layer 1: sub-layers \['ffn', 'attn'\]"),
    (
        with_layer(3, 1, lambda x: replace(x, sub_layers=(SubLayer("attn", 17, "attn.01"), x.sub_layers[1]))),
        "step 3: layer 1: attn keeps 17 of 16 tokens",
    ),
    (
        with_layer(3, 1, lambda x: replace(x, sub_layers=(SubLayer("attn", 8), x.sub_layers[1]))),
        "step 3: layer 1: attn is pruned and has no restore cache",
    ),
    (
        with_layer(3, 1, lambda x: replace(x, sub_layers=(SubLayer("attn", 8, "attn.02"), x.sub_layers[1]))),
        "step 3: layer 1: attn uses restore cache 'attn.02' of another layer or sub-layer",
    ),
    (
        replace(pruned(), caches=(Cache("attn.00", "var", 0, "attn", (2, 2)), *pruned().caches[1:])),
        r"step 2: layer 0: attn writes restore cache 'attn.00' of grid \(2, 2\) at grid \(3, 3\)",
    ),
    (
        with_layer(2, 1, lambda x: replace(x, past=(Segment("var.00", 0, 5),))),
        "step 2: layer 1: tape 'var.00' belongs to",
    ),
    (with_layer(2, 1, lambda x: replace(x, past=(*x.past, *x.past))), "step 2: layer 1: tape 'var.01' is named twice"),
    (with_layer(0, 1, lambda x: replace(x, past=(Segment("var.01", 0, 0),))), "tape 'var.01': 0 rows from row 0"),
    # the chain
    (with_step(2, order=7), "step 2 says that its order is 7"),
    (
        with_step(2, next_input=NextInput("code_sum", (2, 2))),
        r"step 2 hands on the grid \(2, 2\) and step 3 takes \(4, 4\)",
    ),
    (with_step(3, next_input=NextInput("code_sum", (5, 5))), r"the last step hands on the grid \(5, 5\)"),
    (with_step(3, next_input=NextInput("none", None)), "the last step adds nothing to the picture"),
    (with_step(3, images=2), "step 3 runs 2 candidates after 1, and no row gather selects"),
    (replace(pruned(), gathers=(RowGather(3, 2, 1),)), "the row gather before step 3 does not match its 1 to 1"),
    (replace(pruned(), gathers=(RowGather(4, 1, 1),)), "a row gather stands before step 4"),
    # what flows
    (
        with_layer(2, 1, lambda x: replace(x, past=(Segment("var.01", 0, 6),))),
        "step 2, layer 1 reads tape 'var.01' up to row 6",
    ),
    (
        with_layer(1, 1, lambda x: replace(x, writes=())),
        "step 2, layer 1 reads tape 'var.01' up to row 5, and it holds 1",
    ),
    (
        with_layer(1, 1, lambda x: replace(x, writes=(TapeWrite("var.01", 0, 4),))),
        "step 1, layer 1: appends to tape 'var.01' at row 0, and it holds 1",
    ),
    (
        with_layer(1, 1, lambda x: replace(x, writes=(TapeWrite("var.01", 1, 3),))),
        "step 1, layer 1: appends 3 rows to tape 'var.01' and computes 4",
    ),
    (
        with_layer(1, 1, lambda x: replace(x, writes=(TapeWrite("var.01", 0, 5, "replace"),))),
        "step 1, layer 1: replaces tape 'var.01' while it reads it: the tape must be alternating",
    ),
    (
        with_layer(1, 1, lambda x: replace(x, writes=(TapeWrite("var.01", 0, 6, "replace"),))),
        "step 1, layer 1: replaces tape 'var.01' by 6 rows at 0, of 5 at 0",
    ),
    (
        with_layer(1, 1, lambda x: replace(x, writes=(TapeWrite("var.01", 1, 4, "swap"),))),
        "step 1, layer 1: writes tape 'var.01' in the mode 'swap'",
    ),
    (
        with_layer(2, 1, lambda x: replace(x, sub_layers=(SubLayer("attn"), x.sub_layers[1]))),
        "step 3, layer 1 restores from 'attn.01' before it is written",
    ),
    # what nobody reads
    (
        with_layer(3, 0, lambda x: replace(x, writes=(TapeWrite("var.00", 14, 8),))),
        "step 3 writes 'var.00', which nothing reads",
    ),
    (replace(pruned(), tapes=(*pruned().tapes, Tape("x", "var", 0, 1))), "tape 'x' is never read"),
    (
        replace(pruned(), caches=(*pruned().caches, Cache("x", "var", 0, "attn", (1, 1)))),
        "restore cache 'x' is never read",
    ),
]


@pytest.mark.parametrize(("plan", "message"), BROKEN, ids=[message[:50] for _, message in BROKEN])
def test_a_contradiction_is_found(plan: Plan, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        validate(plan)


def test_the_first_three_of_many_are_told() -> None:
    steps: list[Step] = [replace(step, kind="jump") for step in pruned().steps]
    with pytest.raises(PlanError, match=r"step 0: .*; step 1: .*; step 2: .* \(and 1 more\)"):
        validate(replace(pruned(), steps=tuple(steps)))


def test_what_is_replaced_before_anybody_reads_it_is_unread() -> None:
    """Layer 1 forgets step 0: step 1 reads nothing and replaces the tape, so step 0 wrote for nobody."""
    uses = {
        1: ((), (TapeWrite("var.01", 0, 4, "replace"),)),
        2: ((Segment("var.01", 0, 4),), (TapeWrite("var.01", 4, 9),)),
        3: ((Segment("var.01", 0, 13),), ()),
    }
    steps = list(pruned().steps)
    for order, (past, writes) in uses.items():
        layers = list(steps[order].layers)
        layers[1] = replace(layers[1], past=past, writes=writes)
        steps[order] = replace(steps[order], layers=tuple(layers))
    assert find_problems(replace(pruned(), steps=tuple(steps))) == ["step 0 writes 'var.01', which nothing reads"]
