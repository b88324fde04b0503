"""TTS-VAR as a plan: candidates that are selected between steps (methods sheet, section 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nextscale.plan.aliasing import buffer_bytes
from nextscale.plan.buffers import buffers
from nextscale.plan.families.infinity import INFINITY_TOKENIZER, infinity_model, infinity_plan
from nextscale.plan.methods import FastVAR
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Plan, RowGather, Sampling
from nextscale.plan.validate import find_problems

Sound = Callable[[Plan], Plan]
ROWS = (8, 8, 8, 6, 6, 6, 4, 2, 2, 2, 1, 1, 1)
AFTER = {2: 6, 5: 4, 6: 2, 9: 1}  # clustering after steps 2 and 5, resampling after 6 and 9


def infinity() -> Plan:
    return infinity_plan(
        "infinity", infinity_model(4, 512, 4), INFINITY_TOKENIZER, schedule("infinity-1m"), Sampling(0)
    )


@dataclass(frozen=True)
class TTSVAR:
    """``first`` candidates start; after step ``k``, ``select[k]`` of them live on."""

    first: int
    select: dict[int, int]

    def __call__(self, plan: Plan) -> Plan:
        images, steps, gathers = self.first, [], []
        for step in plan.steps:
            steps.append(replace(step, images=images))
            if step.order in self.select:
                gathers.append(RowGather(step.order + 1, images, self.select[step.order]))
                images = self.select[step.order]
        return replace(plan, steps=tuple(steps), gathers=tuple(gathers))


def test_the_default_schedule(sound: Sound) -> None:
    plan = sound(TTSVAR(8, AFTER)(infinity()))
    assert tuple(step.images for step in plan.steps) == ROWS
    assert tuple(step.rows for step in plan.steps) == tuple(2 * images for images in ROWS)
    assert plan.gathers == (RowGather(3, 8, 6), RowGather(6, 6, 4), RowGather(7, 4, 2), RowGather(10, 2, 1))
    assert [step.layers[0].past_rows for step in plan.steps[:3]] == [0, 1, 5]  # rows, not lengths, change


def test_one_candidate_is_the_plain_plan() -> None:
    assert TTSVAR(1, {})(infinity()) == infinity()


def test_gathering_has_a_buffer_to_go_through() -> None:
    """A selection may repeat and reorder rows, so it cannot be done in place."""
    plan = TTSVAR(8, AFTER)(infinity())
    sizes = {buffer.name: buffer_bytes(buffer, 1, "fp16") for buffer in buffers(plan)}
    assert sizes["state.gather"] == sizes["tape.var.k.00"] == 6425 * 16 * 512 * 2


def test_it_composes_with_fastvar_that_skips_the_last_scales(sound: Sound) -> None:
    plan = sound(FastVAR({9: 0.4, 10: 0.5}, 8, skip=(11, 12))(TTSVAR(8, AFTER)(infinity())))
    assert tuple(step.images for step in plan.steps) == ROWS[:11]
    assert plan.gathers[-1] == RowGather(10, 2, 1)
    plan = sound(FastVAR({}, 0, skip=(6, 10, 11))(TTSVAR(8, AFTER)(infinity())))
    assert tuple(step.images for step in plan.steps) == (8, 8, 8, 6, 6, 6, 2, 2, 2, 1)
    assert plan.gathers == (RowGather(3, 8, 6), RowGather(6, 6, 2), RowGather(9, 2, 1))  # 6 to 4 and 4 to 2 joined


def test_a_selection_that_does_not_match_is_a_problem() -> None:
    plan = TTSVAR(8, AFTER)(infinity())
    assert find_problems(replace(plan, gathers=plan.gathers[1:])) == [
        "step 3 runs 6 candidates after 8, and no row gather selects"
    ]
