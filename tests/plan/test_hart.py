"""HART as a plan: a first step of 300 context tokens that gives one (backbones sheet, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import VAR_TOKENIZER
from nextscale.plan.schedules import schedule, tokens
from nextscale.plan.types import Model, Plan, Sampling, Segment, TapeWrite

Sound = Callable[[Plan], Plan]
CONTEXT = 300


def hart(depth: int = 4) -> Plan:
    model = Model("hart", depth, 1536, 24, 64, 4096, 4096, 32, qk_norm=False)
    plan = next_scale_plan("hart", model, VAR_TOKENIZER, schedule("var-1024"), Sampling(600))
    steps = []
    for step in plan.steps:
        layers = []
        for layer in step.layers:
            past = tuple(replace(segment, length=segment.length + CONTEXT - 1) for segment in layer.past)
            if step.order == 0:
                writes: tuple[TapeWrite, ...] = (replace(layer.writes[0], length=CONTEXT),)
            else:
                writes = tuple(replace(write, start=write.start + CONTEXT - 1) for write in layer.writes)
            layers.append(replace(layer, past=past, writes=writes))
        steps.append(replace(step, layers=tuple(layers), sampling=Sampling(600 if step.scale < 7 else 300)))
    steps[0] = replace(steps[0], tokens_in=CONTEXT)
    steps[-1] = replace(steps[-1], next_input=replace(steps[-1].next_input, phi=None))  # none at the last scale
    return replace(plan, steps=tuple(steps))


def test_the_first_step_reads_300_and_gives_1(sound: Sound) -> None:
    plan = sound(hart())
    first = plan.steps[0]
    assert (first.tokens_in, first.tokens_out, first.grid) == (300, 1, (1, 1))
    assert first.layers[0].writes == (TapeWrite("var.00", 0, 300),)
    totals = list(accumulate(tokens(grid) for grid in plan.schedule))
    assert [step.layers[0].past for step in plan.steps[1:]] == [
        (Segment("var.00", 0, CONTEXT - 1 + total),) for total in totals[:-1]
    ]
    assert plan.steps[-1].layers[0].past_rows + 4096 == CONTEXT + 9451 - 1


def test_fastvar_computes_5227_tokens_beside_the_context(sound: Sound) -> None:
    plan = sound(FastVAR({12: 0.5, 13: 0.75}, cache_scale=11)(hart()))
    layers = [step.layers[0].sub_layers[0].kept or step.tokens_in for step in plan.steps]
    assert sum(layers) == 5227 - 1 + CONTEXT
    assert plan.steps[13].layers[0].past_rows == CONTEXT - 1 + 3051 + 1152
