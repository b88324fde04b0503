"""HART as a plan: 300 context tokens that give one, and codes that are refined (backbones sheet, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest

from nextscale.plan.buffers import accesses, buffers
from nextscale.plan.cost import plan_cost
from nextscale.plan.families.hart import HART_SAMPLING, HART_TOKENIZER, hart_model, hart_plan
from nextscale.plan.methods import FastVAR
from nextscale.plan.schedules import schedule, tokens
from nextscale.plan.types import Plan, Sampling, Segment, TapeWrite

Sound = Callable[[Plan], Plan]
CONTEXT = 300


def hart(depth: int = 4, sampling: Sampling = HART_SAMPLING) -> Plan:
    return hart_plan("hart", hart_model(depth), HART_TOKENIZER, schedule("hart-1024"), sampling)


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


def test_half_of_one_code_is_one() -> None:
    plan = hart(sampling=Sampling(1))
    assert {step.sampling.top_k for step in plan.steps if step.sampling} == {1}


def test_fastvar_computes_5227_tokens_beside_the_context(sound: Sound) -> None:
    plan = sound(FastVAR({12: 0.5, 13: 0.75}, cache_scale=11)(hart()))
    layers = [step.layers[0].sub_layers[0].kept or step.tokens_in for step in plan.steps]
    assert sum(layers) == 5227 - 1 + CONTEXT
    assert plan.steps[13].layers[0].past_rows == CONTEXT - 1 + 3051 + 1152


def test_the_last_scale_counts_as_the_one_before_it() -> None:
    plan = hart()
    assert plan.guidance.weights[0] == ((1.0, 0.0), (0.0, 0.0))
    assert plan.guidance.weights[12] == plan.guidance.weights[13] == ((1.0, 12 / 13), (0.0, -12 / 13))
    smooth = [step.sampling.smooth_ratio for step in plan.steps if step.sampling]
    assert smooth == [*(scale / 13 for scale in range(13)), 12 / 13]
    assert {step.sampling.smooth_ratio for step in hart(sampling=Sampling(600)).steps if step.sampling} == {0.0}


def test_fewer_codes_are_drawn_from_at_larger_scales() -> None:
    assert [step.sampling.top_k for step in hart().steps if step.sampling] == [600] * 7 + [300] * 7
    assert {step.sampling.top_k for step in hart(sampling=Sampling(0)).steps if step.sampling} == {0}


def test_only_the_last_codes_are_refined_and_go_without_a_convolution() -> None:
    plan = hart()
    assert [step.diffusion for step in plan.steps] == [False] * 13 + [True]
    assert [step.next_input.phi for step in plan.steps] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, None]
    bare = replace(hart_model(2), diffusion=None)
    plain = hart_plan("hart", bare, HART_TOKENIZER, schedule("hart-1024"), HART_SAMPLING)
    assert not any(step.diffusion for step in plain.steps)


def test_noise_of_the_diffusion_is_a_start_and_one_for_every_step_but_the_last() -> None:
    plan = hart()
    made = {buffer.name: buffer for buffer in buffers(plan)}
    assert made["noise.diffusion"].row_items == 4096 * 8 * 32
    assert made["noise"].row_items == made["noise.smooth"].row_items == made["logits"].row_items == 4096 * 4096
    uses = [(access.graph, access.mode) for access in accesses(plan) if access.buffer == "noise.diffusion"]
    assert uses == [(13, "source"), (13, "read")]


def test_the_context_is_the_first_steps_input_and_every_step_counts_positions_from_it() -> None:
    plan = hart(2)
    made = {buffer.name: buffer for buffer in buffers(plan)}
    assert made["cond.sos"].row_items == 2 * 300 * 1536
    assert made["cond.position"].row_items == 2
    assert not any(name.startswith("cond.adaln") for name in made)
    assert {"text", "text_length"} <= set(made)
    assert "negative" not in made
    reads = {name: [a.graph for a in accesses(plan) if (a.buffer, a.mode) == (name, "read")] for name in made}
    assert reads["cond.sos"] == [0]
    assert reads["cond.position"] == reads["cond.head"] == list(range(14))


def test_work_of_the_diffusion_by_hand() -> None:
    cost, w, c, z = plan_cost(hart(2)), 1024, 1536, 32
    once, each = 2 * c * w, 2 * z * w + 6 * 10 * w * w + 4 * w * w + 4 * w * z
    assert cost.steps[13].flops["diffusion"] == 2 * 4096 * (once + 8 * each)
    assert cost.steps[12].flops["diffusion"] == 0
    assert cost.steps[0].flops["linear"] == pytest.approx(2 * 2 * 300 * (8 * c * c + 6 * c * 4096))
    assert cost.begin.flops["linear"] == 2 * (2 * c * c * 2 + 2 * 300 * 1536 * c)
