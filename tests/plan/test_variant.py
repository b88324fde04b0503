"""VARiant as a plan: late scales run a subset of the layers (methods sheet, section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from nextscale.plan.aliasing import lifetimes
from nextscale.plan.editing import drop_unread, map_layers
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import plan_for, recipe
from nextscale.plan.types import Plan

Sound = Callable[[Plan], Plan]
PAST = [0, 1, 5, 14, 30, 55, 91, 155, 255, 424]


@dataclass(frozen=True)
class Variant:
    """From scale ``bridge`` on, only ``depth`` layers run, evenly spread, the first and the last among them."""

    bridge: int
    depth: int

    def layers(self, full: int) -> tuple[int, ...]:
        if self.depth == full:
            return tuple(range(full))
        return tuple(i * (full - 1) // (self.depth - 1) for i in range(self.depth))

    def __call__(self, plan: Plan) -> Plan:
        chosen = self.layers(plan.model().depth)
        plan = map_layers(plan, lambda s, layer: layer if s.scale < self.bridge or layer.index in chosen else None)
        return replace(drop_unread(plan), methods=(*plan.methods, f"{self}"))


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (16, (0, *range(1, 30, 2))),
        (8, (0, 4, 8, 12, 16, 20, 24, 29)),
        (4, (0, 9, 19, 29)),
        (2, (0, 29)),
    ],
)
def test_late_scales_run_the_layers_of_the_sheet(sound: Sound, depth: int, layers: tuple[int, ...]) -> None:
    plan = sound(Variant(6, depth)(plan_for(recipe("var-d30"))))
    for step in plan.steps:
        ran = tuple(layer.index for layer in step.layers)
        assert ran == (layers if step.scale >= 6 else tuple(range(30)))
        assert {layer.past_rows for layer in step.layers} == {PAST[step.scale]}


def test_memory_after_the_bridge_is_that_of_the_retained_layers(sound: Sound) -> None:
    """680 rows of 16 layers for 64 pictures are the sheet's 15300 MiB at 6 bytes a pair; we stop at 424 rows."""
    plan = sound(Variant(6, 16)(plan_for(recipe("var-d30"))))
    rows = {tape.layer: plan.tape_rows(tape.id) for tape in plan.tapes}
    retained = {layer.index for layer in plan.steps[9].layers}
    assert all(rows[layer] == (424 if layer in retained else 55) for layer in range(30))
    assert sum(rows[layer] + 256 for layer in retained) * 128 * 1920 * 6 == 15300 * 2**20


def test_skipped_layers_free_their_tapes_at_the_bridge(sound: Sound) -> None:
    """Step 5 is the last that runs layer 2: its rows of that step are not even written."""
    plan = sound(Variant(6, 16)(plan_for(recipe("var-d30"))))
    assert lifetimes(plan)["tape.var.k.02"] == (0, 5)
    assert not plan.steps[5].layers[2].writes
    assert lifetimes(plan)["tape.var.k.03"] == (0, 9)


def test_all_layers_or_no_flexible_zone_is_the_plain_plan() -> None:
    plain = plan_for(recipe("var-d30"))
    assert replace(Variant(6, 30)(plain), methods=()) == plain
    assert replace(Variant(10, 8)(plain), methods=()) == plain


def test_it_composes_with_fastvar_in_either_order(sound: Sound) -> None:
    plain = plan_for(recipe("var-d30"))
    fast, variant = FastVAR({8: 0.4, 9: 0.6}, 7, layers=(1, -1)), Variant(6, 16)
    one, other = sound(fast(variant(plain))), sound(variant(fast(plain)))
    assert one.steps == other.steps
    assert set(one.caches) == set(other.caches)
    assert one.tapes == other.tapes
    assert {cache.layer for cache in one.caches} == set(range(1, 30, 2))
    assert [layer.past_rows for layer in one.steps[9].layers] == [424, *[357] * 15]
