"""ScaleKV as a plan: per-layer, per-scale budgets of the tapes (methods sheet, section 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from nextscale.plan.editing import computed_tokens, drop_unread
from nextscale.plan.families.infinity import (
    INFINITY_PATCH_TOKENIZER,
    INFINITY_TOKENIZER,
    infinity_model,
    infinity_plan,
)
from nextscale.plan.limits import limits
from nextscale.plan.methods import FastVAR
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Layer, Plan, Sampling, Segment, Step, TapeWrite

Sound = Callable[[Plan], Plan]
BUDGETS_2B = {8: (920, 632), 9: (1490, 594), 10: (2510, 526), 11: (4100, 420), 12: (6385, 465)}
BUDGETS_8B = {8: (909, 629), 9: (1464, 584), 10: (2463, 503), 11: (4054, 374), 12: (6200, 200)}
DRAFTERS_2B = {8: (0, 23), 9: (0, 23), 10: (0, 23), 11: (0, 23), 12: (0,)}
DRAFTERS_8B = dict.fromkeys(range(8, 13), (0, 1, 2))


def infinity(depth: int, width: int, heads: int, codes: int) -> Plan:
    tokenizer = INFINITY_TOKENIZER if codes == 32 else INFINITY_PATCH_TOKENIZER
    model = infinity_model(depth, width, heads, bits=codes)
    return infinity_plan("infinity", model, tokenizer, schedule("infinity-1m"), Sampling(0))


@dataclass(frozen=True)
class ScaleKV:
    """``budgets[step]`` is what drafters and the others may hold when that step reads; ``drafters`` names layers."""

    budgets: dict[int, tuple[int, int]]
    drafters: dict[int, tuple[int, ...]]

    def __call__(self, plan: Plan) -> Plan:
        held: dict[int, int] = dict.fromkeys(range(plan.model().depth), 0)
        steps = []
        for step in plan.steps:
            layers = tuple(self._layer(step, layer, held) for layer in step.layers)
            steps.append(replace(step, layers=layers))
        tapes = tuple(replace(tape, alternating=True) for tape in plan.tapes)
        return drop_unread(replace(plan, steps=tuple(steps), tapes=tapes))

    def _layer(self, step: Step, layer: Layer, held: dict[int, int]) -> Layer:
        tape, before = f"var.{layer.index:02d}", held[layer.index]
        end = before + computed_tokens(step, layer)
        budget = self.budgets.get(step.order + 1)
        allowed = end if budget is None else budget[layer.index not in self.drafters[step.order + 1]]
        write = (
            TapeWrite(tape, 0, allowed, "replace") if allowed < end else TapeWrite(tape, before, end - before, "append")
        )
        held[layer.index] = min(end, allowed)
        return replace(layer, past=(Segment(tape, 0, before),) if before else (), writes=(write,))


def pasts(plan: Plan, layer: int) -> list[int]:
    return [step.layers[layer].past_rows for step in plan.steps]


def test_lengths_of_the_2b_model(sound: Sound) -> None:
    plan = sound(ScaleKV(BUDGETS_2B, DRAFTERS_2B)(infinity(32, 2048, 16, 32)))
    start = [0, 1, 5, 21, 57, 121, 265, 521]
    assert pasts(plan, 5) == [*start, 632, 594, 526, 420, 465]
    assert pasts(plan, 0) == [*start, 920, 1490, 2510, 4100, 6385]
    assert pasts(plan, 23) == [*start, 920, 1490, 2510, 4100, 465]
    last = plan.steps[12]
    assert last.layers[5].past_rows + last.tokens_in == 4561
    assert last.layers[0].past_rows + last.tokens_in == 10481
    assert not any(layer.writes for layer in last.layers)


def test_lengths_of_the_8b_model(sound: Sound) -> None:
    plan = sound(ScaleKV(BUDGETS_8B, DRAFTERS_8B)(infinity(40, 3584, 28, 56)))
    assert pasts(plan, 20)[7:] == [521, 629, 584, 503, 374, 200]
    assert pasts(plan, 2)[7:] == [521, 909, 1464, 2463, 4054, 6200]


@pytest.mark.parametrize("step", range(8, 13))
def test_budgets_conserve_650_rows_a_layer(sound: Sound, step: int) -> None:
    plan = sound(ScaleKV(BUDGETS_2B, DRAFTERS_2B)(infinity(32, 2048, 16, 32)))
    assert sum(layer.past_rows for layer in plan.steps[step].layers) == 650 * 32


def test_budgets_above_every_length_change_nothing() -> None:
    plain = infinity(4, 512, 4, 32)
    plan = ScaleKV(dict.fromkeys(range(8, 13), (99999, 99999)), dict.fromkeys(range(8, 13), ()))(plain)
    assert plan.steps == plain.steps


def test_drafters_of_the_last_scales_are_beyond_tensorrt(sound: Sound) -> None:
    plan = ScaleKV(BUDGETS_2B, DRAFTERS_2B)(infinity(32, 2048, 16, 32))
    found = [sentence for sentence in limits(plan) if "tape" in sentence]
    assert len(found) == 2  # 4100 rows for step 11, 6385 for step 12
    assert "step 10 keeps 4100 rows" in found[0]
    assert "step 11 keeps 6385 rows" in found[1]


def test_budgets_survive_fastvar(sound: Sound) -> None:
    """Pruned steps leave fewer rows; budgets that are smaller stay, larger ones shrink to what there is."""
    plain = infinity(32, 2048, 16, 32)
    plan = sound(FastVAR({9: 0.4, 10: 0.5}, 8, layers=(3, 27), skip=(11, 12))(ScaleKV(BUDGETS_2B, DRAFTERS_2B)(plain)))
    assert pasts(plan, 5)[8:] == [632, 594, 526]
    assert pasts(plan, 23)[8:] == [920, 1490, 1490 + 615]  # 2510 of 2514 rows were kept, of 2105 all are
