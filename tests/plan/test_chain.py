"""The plain chain: lengths of tapes and pasts, what the last step leaves out, what each step hands on."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.errors import PlanError
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Grid, Model, Plan, Sampling, Segment, TapeWrite, Tokenizer

TOKENIZER = Tokenizer(160, (1, 1, 2, 2, 4), 3, 32, 4096, 16)


def plain(grids: tuple[Grid, ...], depth: int = 2) -> Plan:
    model = Model("var", depth, 64 * depth, depth, 64, 256 * depth, 4096, 32, 1000)
    return next_scale_plan("plain", model, TOKENIZER, grids, Sampling(900))


def test_var_256() -> None:
    plan = plain(schedule("var-256"))
    assert [step.tokens_in for step in plan.steps] == [1, 4, 9, 16, 25, 36, 64, 100, 169, 256]
    assert [step.layers[1].past_rows for step in plan.steps] == [0, 1, 5, 14, 30, 55, 91, 155, 255, 424]
    assert [step.next_input.phi for step in plan.steps] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert plan.image_size == (256, 256)
    assert plan.tape_rows("var.01") == 424


@given(grids=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=6), depth=st.integers(1, 3))
def test_every_step_reads_all_and_appends_its_own(grids: list[Grid], depth: int) -> None:
    plan = plain(tuple(grids), depth)
    ends = list(accumulate(h * w for h, w in grids))
    for step, end, following in zip(plan.steps, ends, [*grids[1:], None], strict=True):
        before = end - step.tokens_in
        assert step.next_input.grid == following
        for layer in step.layers:
            tape = f"var.{layer.index:02d}"
            assert layer.past == ((Segment(tape, 0, before),) if before else ())
            assert layer.writes == (() if following is None else (TapeWrite(tape, before, step.tokens_in),))


@pytest.mark.parametrize("grids", [(), ((4, 4),), ((1, 1), (0, 4))])
def test_a_schedule_that_cannot_run_is_refused(grids: tuple[Grid, ...]) -> None:
    with pytest.raises(PlanError, match="cannot be run"):
        plain(grids)
