"""Buffers: names as in the graph signatures, packing by lifetime, and the check that finds lost bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.aliasing import Layout, buffer_bytes, check_aliasing, find_conflicts, lifetimes, pack, values
from nextscale.plan.buffers import accesses, buffers
from nextscale.plan.errors import InputError, PlanError
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import RECIPES, plan_for, recipe, var_model
from nextscale.plan.types import Grid, Layer, Plan, Segment, TapeWrite


def small(grids: tuple[Grid, ...] = ((1, 1), (2, 2), (3, 3), (4, 4))) -> Plan:
    return plan_for(recipe("demo"), model=var_model(2, 8, 2, vocabulary=512, code_channels=16), schedule=grids)


def change(plan: Plan, order: int, index: int, layer: Layer) -> Plan:
    layers = list(plan.steps[order].layers)
    layers[index] = layer
    steps = list(plan.steps)
    steps[order] = replace(steps[order], layers=tuple(layers))
    return replace(plan, steps=tuple(steps))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("share", [True, False])
def test_packed_arenas_of_every_recipe_are_sound(name: str, share: bool) -> None:
    plan = plan_for(recipe(name))
    layout = pack(plan, images=2, precision="fp16", share=share)
    assert find_conflicts(plan, layout) == []


def test_names_are_those_of_the_graph_signatures() -> None:
    names = {buffer.name for buffer in buffers(FastVAR({3: 0.5}, 2)(small()))}
    assert {"tape.var.k.01", "tape.var.v.01", "cache.attn.01", "cache.ffn.00", "cond.adaln.01", "cond.sos"} <= names
    assert {"cond.head", "state.map.0", "state.map.1", "state.code_sum.0", "noise", "logits", "tokens"} <= names


def test_sizes_of_a_tape() -> None:
    """VAR-d30's key and value rows for 64 pictures with guidance: 28687 MiB at 6 bytes a pair with all 680 rows."""
    plan = plan_for(recipe("var-d30"))
    tapes = [buffer for buffer in buffers(plan) if buffer.cause == "tapes"]
    assert len(tapes) == 60
    assert sum(buffer_bytes(buffer, 64, "fp16") for buffer in tapes) == 30 * 424 * 128 * 1920 * 4


def test_state_takes_turns() -> None:
    found = [(a.graph, a.mode, a.buffer) for a in accesses(small()) if a.buffer.startswith("state.code_sum")]
    assert found == [
        (0, "replace", "state.code_sum.1"),
        (1, "read", "state.code_sum.1"),
        (1, "replace", "state.code_sum.0"),
        (2, "read", "state.code_sum.0"),
        (2, "replace", "state.code_sum.1"),
        (3, "read", "state.code_sum.1"),
        (3, "replace", "state.code_sum.0"),
        (4, "read", "state.code_sum.0"),
    ]


def test_a_tape_value_lives_until_its_last_reader() -> None:
    tape = [(v.start, v.end, v.written, v.read) for v in values(small()) if v.buffer == "tape.var.k.01"]
    assert tape == [(0, 1, 0, 3), (1, 5, 1, 3), (5, 14, 2, 3)]
    assert lifetimes(small())["tape.var.k.01"] == (0, 3)


@given(
    grids=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=3, max_size=6).map(tuple),
    ratio=st.floats(0, 0.99),
    images=st.integers(1, 3),
    precision=st.sampled_from(["fp32", "fp16", "bf16"]),
)
def test_any_pruned_plan_packs_soundly(grids: tuple[Grid, ...], ratio: float, images: int, precision: str) -> None:
    plan = FastVAR({-1: ratio}, cache_scale=-3)(small(grids))
    layout, apart = (pack(plan, images, precision, share) for share in (True, False))
    assert find_conflicts(plan, layout) == find_conflicts(plan, apart) == []
    assert layout.size <= apart.size
    assert set(layout.offsets) <= {buffer.name for buffer in buffers(plan)}


def test_two_live_buffers_in_one_place_are_found() -> None:
    layout = pack(small())
    moved = replace(layout, offsets={**layout.offsets, "tape.var.v.01": layout.offsets["tape.var.k.01"]})
    with pytest.raises(PlanError, match=r"step 0 writes 'tape\.var\.[kv]\.01' over rows 0 to 1 of 'tape\.var\..\.01'"):
        check_aliasing(small(), moved)


def test_every_misplacement_onto_what_is_still_needed_is_found() -> None:
    """Whatever a step reads of earlier graphs must not lie where another such thing lies."""
    plan = FastVAR({3: 0.5}, 1)(small())
    layout = pack(plan, share=False)
    kept = [name for name in layout.offsets if name.startswith(("cond.adaln", "cache", "tape"))]
    assert len(kept) == 2 + 4 + 4
    for name in kept:
        for other in kept:
            moved = replace(layout, offsets={**layout.offsets, name: layout.offsets[other]}, size=layout.size + 1 << 20)
            assert bool(find_conflicts(plan, moved)) == (name != other), (name, other)


def test_an_append_over_rows_that_are_read_later_is_found() -> None:
    plan = small()
    layer = plan.steps[2].layers[1]
    broken = change(plan, 2, 1, replace(layer, writes=(TapeWrite("var.01", 2, 9),)))
    conflicts = find_conflicts(broken, pack(broken))
    assert "step 2 writes 'tape.var.k.01' over rows 1 to 5 of 'tape.var.k.01', which step 3 still reads" in conflicts


def replaced(alternating: bool) -> Plan:
    """Layer 1's tape is compressed by step 2 from 5 + 9 rows to 6, while that step reads the 5."""
    plan = small()
    layer = replace(plan.steps[2].layers[1], writes=(TapeWrite("var.01", 0, 6, "replace"),))
    plan = change(plan, 2, 1, layer)
    plan = change(plan, 3, 1, replace(plan.steps[3].layers[1], past=(Segment("var.01", 0, 6),)))
    return replace(plan, tapes=(plan.tapes[0], replace(plan.tapes[1], alternating=alternating)))


def test_a_replaced_tape_needs_two_buffers() -> None:
    assert find_conflicts(replaced(alternating=True), pack(replaced(alternating=True))) == []
    conflicts = find_conflicts(replaced(alternating=False), pack(replaced(alternating=False)))
    assert "step 2 writes 'tape.var.k.01' over rows 0 to 1 of 'tape.var.k.01', which step 2 still reads" in conflicts
    names = {b.name for b in buffers(replaced(alternating=True)) if b.cause == "tapes"}
    assert {"tape.var.k.01.0", "tape.var.k.01.1", "tape.var.k.00"} <= names


def test_a_buffer_without_a_place_or_past_the_end_is_found() -> None:
    layout = pack(small())
    there = {name: offset for name, offset in layout.offsets.items() if name != "noise"}
    assert "buffer 'noise' has no place" in find_conflicts(small(), replace(layout, offsets=there))
    short = Layout(layout.images, layout.precision, layout.offsets, layout.size - 512)
    assert any("writes past the end of" in problem for problem in find_conflicts(small(), short))


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(InputError, match="precision 'fp8' is unknown; known are fp32, fp16, bf16"):
        pack(small(), precision="fp8")
