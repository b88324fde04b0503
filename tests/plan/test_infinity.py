"""Infinity as a plan: bits for tokens, constant guidance, positions on the ratio's grid (sheet, sections 2 and 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.buffers import BEGIN, accesses, buffers
from nextscale.plan.conditioning import MASK_LANES
from nextscale.plan.cost import plan_cost, resize_flops
from nextscale.plan.families.infinity import (
    INFINITY_PATCH_TOKENIZER,
    INFINITY_SAMPLING,
    INFINITY_TOKENIZER,
    infinity_model,
    infinity_plan,
)
from nextscale.plan.ratios import RATIOS
from nextscale.plan.recipes import plan_for, recipe
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Grid, Plan, Text

Sound = Callable[[Plan], Plan]


def small(grids: tuple[Grid, ...] = ((1, 1), (2, 2), (3, 4)), **changes: Any) -> Plan:
    model = replace(infinity_model(2, 16, 2, text=Text(10, 24), ffn_width=256), **changes)
    return infinity_plan("small", model, INFINITY_TOKENIZER, grids, INFINITY_SAMPLING)


def test_the_plain_chain(sound: Sound) -> None:
    plan = sound(plan_for(recipe("infinity-2b-1m")))
    assert plan.image_size == (1024, 1024)
    assert [step.layers[31].past_rows for step in plan.steps][-2:] == [4121, 6425]
    for step in plan.steps:
        assert (step.next_input.up, step.next_input.down, step.next_input.phi) == ("bilinear", "bilinear", None)
        assert step.sampling == INFINITY_SAMPLING
    assert INFINITY_SAMPLING.order.index("temperature") < INFINITY_SAMPLING.order.index("guidance")
    assert dict(plan.defaults) == {"guidance_scale": 3, "top_p": 0.97, "temperature": 0.5}
    assert dict(plan_for(recipe("infinity-8b-1m")).defaults)["temperature"] == 1


@given(guidance=st.floats(0, 10), conditional=st.floats(-9, 9), unconditional=st.floats(-9, 9))
def test_guidance_is_upstreams_formula_at_every_scale(
    guidance: float, conditional: float, unconditional: float
) -> None:
    for (c0, c1), (u0, u1) in small().guidance.weights:
        found = (c0 + c1 * guidance) * conditional + (u0 + u1 * guidance) * unconditional
        assert found == pytest.approx(guidance * conditional + (1 - guidance) * unconditional)


def test_positions_follow_the_ratio_unless_the_model_says_them() -> None:
    assert plan_for(recipe("infinity-2b-0.25m")).model().rope_grid == (64, 64)
    assert plan_for(recipe("infinity-2b-1m"), schedule=schedule("infinity-1m-0.5")).model().rope_grid == (45, 90)
    assert small().model().rope_grid == (3, 4)
    assert small(rope_grid=(9, 9)).model().rope_grid == (9, 9)


@pytest.mark.parametrize("name", ["infinity-2b-1m-fastvar", "infinity-125m-1m-fastvar13", "infinity-8b-1m-fastvar"])
def test_every_aspect_ratio_is_pruned_by_the_same_scales(sound: Sound, name: str) -> None:
    square = plan_for(recipe(name))
    for ratio in (0.333, 0.75, 1.5, 2.0):
        plan = sound(plan_for(recipe(name), schedule=RATIOS[ratio][:13]))
        assert [step.scale for step in plan.steps] == [step.scale for step in square.steps]
        assert {cache.grid for cache in plan.caches} == {RATIOS[ratio][8]}
        for step, other in zip(plan.steps, square.steps, strict=True):
            for layer, same in zip(step.layers, other.layers, strict=True):
                kept, of = layer.sub_layers[0].kept, same.sub_layers[0].kept
                assert (kept is None) == (of is None)
                if kept and of:
                    assert kept / step.tokens_in == pytest.approx(of / other.tokens_in, abs=0.01)


def test_a_token_of_the_8b_is_four_latents_of_fourteen_channels(sound: Sound) -> None:
    plan = sound(plan_for(recipe("infinity-8b-1m")))
    assert (plan.tokenizer, plan.code_grid, plan.image_size) == (INFINITY_PATCH_TOKENIZER, (128, 128), (1024, 1024))
    assert (plan.model().code_channels, plan.model().draws, plan.model().head_outputs) == (56, (56,), 112)
    sizes = {buffer.name: buffer.row_items for buffer in buffers(plan)}
    assert sizes["state.code_sum.0"] == 14 * 128 * 128
    assert sizes["state.map.0"] == 64 * 64 * 56
    assert sizes["tokens"] == 64 * 64 * 56
    assert sizes["noise"] == sizes["logits"] == 64 * 64 * 112
    last = plan_cost(plan).steps[-2]
    assert last.flops["codes"] == 14 * (resize_flops((96, 96), (128, 128)) + resize_flops((128, 128), (128, 128)))


def test_the_text_goes_in_once_and_its_keys_are_read_by_every_step() -> None:
    plan = small()
    made = {buffer.name: buffer for buffer in buffers(plan)}
    assert made["text"].row_items == made["negative"].row_items == 10 * 24
    assert (made["text_length"].row_items, made["text_length"].dtype) == (1, "int32")
    keys = made["cond.text.k.01"]
    assert (keys.row_items, keys.dtype) == (2 * 10 * (16 + 2 * MASK_LANES), "compute")
    assert "noise.diffusion" not in made
    begun = [(access.mode, access.buffer) for access in accesses(plan) if access.graph == BEGIN]
    given = ("text", "text_length", "negative", "negative_length")
    assert begun[:8] == [*(("source", name) for name in given), *(("read", name) for name in given)]
    reads = [access.graph for access in accesses(plan) if access.buffer == "cond.text.v.00" and access.mode == "read"]
    assert reads == [0, 1, 2]


def test_cross_attention_by_hand() -> None:
    """Query and projection for each token, scores with 10 text tokens; keys and values are begin's work."""
    cost, rows, c, n = plan_cost(small(), precision="fp32"), 2, 16, 12
    last = cost.steps[2]
    self_attention, cross, ffn = 8 * n * c * c, 4 * n * c * c, 4 * n * c * 256
    assert last.flops["linear"] == 2 * rows * (self_attention + cross + ffn) + 2 * n * 32 * c
    assert last.flops["attention"] == 2 * rows * (4 * n * (5 + n) * c + 4 * n * 10 * c)
    assert last.flops["head"] == 2 * rows * n * c * 64
    pooling, context = 2 * 10 * 24 * 2 * c + 4 * 10 * c + 2 * c * c, 2 * 10 * (24 * c + c * c)
    adaln = 2 * c * c * (6 + 2)
    assert cost.begin.flops["linear"] == rows * (adaln + pooling + context + 2 * 2 * 10 * c * 2 * c)
