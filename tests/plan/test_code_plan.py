"""CoDe as a plan: a large drafter for the first scales, a small refiner for the rest (methods sheet, section 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest

from nextscale.plan.aliasing import lifetimes, pack
from nextscale.plan.buffers import accesses
from nextscale.plan.chain import next_scale_plan
from nextscale.plan.errors import PlanError
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import VAR_TOKENIZER, plan_for, recipe, var_model
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Plan, Sampling, Segment, TapeWrite
from nextscale.plan.validate import find_problems

Sound = Callable[[Plan], Plan]
TOTALS = (1, 5, 14, 30, 55, 91, 155, 255, 424, 680)  # the sheet's exit points


def code(draft_steps: int) -> Plan:
    """The drafter's steps, one prefill of the refiner over all scales so far, then the refiner's steps."""
    sampling = Sampling(600, ("guidance", "top_k", "top_p", "temperature"))
    big, small = (
        next_scale_plan(name, var_model(depth), VAR_TOKENIZER, schedule("var-256"), sampling, name)
        for name, depth in (("draft", 30), ("refine", 16))
    )
    steps = list(big.steps[:draft_steps])
    steps[-1] = replace(steps[-1], layers=tuple(replace(layer, writes=()) for layer in steps[-1].layers))
    entry = small.steps[draft_steps]
    total = TOTALS[draft_steps]
    writes = draft_steps < 9
    layers = tuple(
        replace(layer, past=(), writes=(TapeWrite(f"refine.{layer.index:02d}", 0, total),) if writes else ())
        for layer in entry.layers
    )
    steps.append(replace(entry, kind="prefill", tokens_in=total, layers=layers))
    steps += small.steps[draft_steps + 1 :]
    return replace(
        big,
        name=f"code-{draft_steps}",
        models=big.models + small.models,
        steps=tuple(steps),
        tapes=(big.tapes if draft_steps > 1 else ()) + (small.tapes if writes else ()),
        methods=(f"CoDe(draft={draft_steps})",),
    )


@pytest.mark.parametrize("draft_steps", range(1, 10))
def test_lengths(sound: Sound, draft_steps: int) -> None:
    plan = sound(code(draft_steps))
    entry = plan.steps[draft_steps]
    assert (entry.tokens_in, entry.tokens_out) == (
        TOTALS[draft_steps],
        (1, 4, 9, 16, 25, 36, 64, 100, 169, 256)[draft_steps],
    )
    assert [step.layers[0].past_rows for step in plan.steps[:draft_steps]] == [0, *TOTALS][:draft_steps]
    assert [step.layers[0].past_rows for step in plan.steps[draft_steps + 1 :]] == list(TOTALS[draft_steps:9])
    for tape in plan.tapes:  # drafter: up to the last but one draft step; refiner: all before the last step
        assert plan.tape_rows(tape.id) == (TOTALS[draft_steps - 2] if tape.weight_set == "draft" else 424)
    assert {len(step.layers) for step in plan.steps[:draft_steps]} == {30}
    assert {len(step.layers) for step in plan.steps[draft_steps:]} == {16}


def test_published_memory_of_the_refiner() -> None:
    """8160 MiB at 64 pictures: 16 layers of all 680 rows, 6 bytes for a key and a value."""
    assert 16 * 680 * 128 * var_model(16).width * 6 == 8160 * 2**20


def test_the_refiner_reads_every_map_that_the_drafter_handed_on() -> None:
    plan = code(6)
    hub = [(a.graph, a.mode, a.start, a.length) for a in accesses(plan) if a.buffer == "state.maps"]
    ends = list(accumulate((4, 9, 16, 25, 36, 64)))
    assert [access for access in hub if access[1] == "append"] == [
        (order, "append", start, end - start) for order, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]
    assert hub[-1] == (6, "read", 0, 154)


def test_the_drafters_tapes_make_room_for_the_refiners() -> None:
    plan = code(6)
    assert lifetimes(plan)["tape.draft.k.00"] == (0, 5)
    assert lifetimes(plan)["tape.refine.k.00"] == (6, 9)
    shared, apart = pack(plan, 64, "fp16"), pack(plan, 64, "fp16", share=False)
    drafter = 30 * 55 * 128 * 1920 * 4
    assert apart.size - shared.size >= drafter


def test_fastvar_prunes_the_refiners_late_scales(sound: Sound) -> None:
    plan = sound(FastVAR({8: 0.4, 9: 0.6}, cache_scale=7)(code(6)))
    assert plan.steps[9].layers[0].past == (Segment("refine.00", 0, 357),)
    assert {cache.id for cache in plan.caches} >= {"refine.attn.00", "refine.ffn.15"}
    at_entry = sound(FastVAR({8: 0.4, 9: 0.6}, cache_scale=7)(code(7)))  # the prefill step fills the caches
    assert at_entry.steps[7].layers[0].sub_layers[0].cache == "refine.attn.00"
    with pytest.raises(PlanError, match="layer 0 of 'refine' prunes attn, but does not run at cache scale 5"):
        FastVAR({8: 0.4}, cache_scale=5)(code(6))
    with pytest.raises(PlanError, match=r"step 8 \(prefill\) cannot be pruned"):
        FastVAR({8: 0.4}, cache_scale=7)(code(8))


def test_a_weight_set_that_never_runs_is_a_problem() -> None:
    plan = plan_for(recipe("var-d16"))
    models = (*plan.models, ("draft", var_model(30)))
    assert find_problems(replace(plan, models=models)) == ["weight set 'draft' is never run"]
