"""HMAR as a plan: no tapes, and masked passes that refine a scale (methods sheet, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nextscale.plan.buffers import accesses
from nextscale.plan.recipes import plan_for, recipe, var_model
from nextscale.plan.types import Layer, NextInput, Plan, Step

Sound = Callable[[Plan], Plan]
SCHEDULE = ((1,), (1, 3), (1, 1, 2, 5), (16,), (25,), (36,), (64,), (100,), (169,), (256,))
TAIL = 8


def hmar(depth: int = 16) -> Plan:
    """Layers ``0 .. depth-9`` are shared; 8 next-scale layers follow, then 8 mask layers."""
    plain = plan_for(recipe("var-d16"))
    model = replace(var_model(depth), depth=depth + TAIL)
    names = plain.steps[0].layers[0].sub_layers
    shared = [Layer(i, names) for i in range(depth - TAIL)]
    next_scale = (*shared, *(Layer(i, names) for i in range(depth - TAIL, depth)))
    mask = (*shared, *(Layer(i, names) for i in range(depth, depth + TAIL)))
    steps: list[Step] = []
    for step in plain.steps:
        passes = len(SCHEDULE[step.scale])
        first = replace(step, layers=next_scale)
        chain = [first, *[replace(step, layers=mask, kind="mask", guidance_rows=1)] * (passes - 1)]
        hold = NextInput("none", step.grid)
        for i, run in enumerate(chain):
            steps.append(replace(run, order=len(steps), next_input=run.next_input if i == passes - 1 else hold))
    return replace(plain, models=(("var", model),), steps=tuple(steps), tapes=())


def test_fourteen_passes_of_which_four_mask(sound: Sound) -> None:
    plan = sound(hmar())
    assert len(plan.steps) == 14
    assert [step.scale for step in plan.steps if step.kind == "mask"] == [1, 2, 2, 2]
    layers = [tuple(layer.index for layer in step.layers) for step in plan.steps]
    assert sum(set(range(8)) <= set(ran) for ran in layers) == 14
    assert sum(set(range(8, 16)) <= set(ran) for ran in layers) == 10
    assert sum(set(range(16, 24)) <= set(ran) for ran in layers) == 4


def test_nothing_is_remembered_but_the_map() -> None:
    plan = hmar()
    assert not plan.tapes
    assert all(not layer.past and not layer.writes for step in plan.steps for layer in step.layers)
    touched = {access.buffer.split(".")[0] for access in accesses(plan)}
    assert touched == {"labels", "cond", "state", "noise", "tokens", "logits", "image"}


def test_mask_passes_run_conditional_rows_and_read_the_last_tokens(sound: Sound) -> None:
    plan = sound(hmar())
    assert [step.rows for step in plan.steps] == [2, 2, 1, 2, 1, 1, 1, *[2] * 7]
    reads = [(a.graph, a.buffer) for a in accesses(plan) if a.buffer.startswith("state.tokens") and a.mode == "read"]
    assert [graph for graph, _ in reads] == [2, 4, 5, 6]


def test_the_map_stays_until_the_scale_is_done() -> None:
    """Steps 3 to 6 are the 3 x 3 scale: all read one map, and the last adds the codes."""
    maps = {a.graph: a.buffer for a in accesses(hmar()) if a.buffer.startswith("state.map") and a.mode == "read"}
    assert len({maps[order] for order in (3, 4, 5, 6)}) == 1
    sums = {a.graph for a in accesses(hmar()) if a.buffer.startswith("state.code_sum") and a.mode == "replace"}
    assert sums == {0, 2, 6, 7, 8, 9, 10, 11, 12, 13}
