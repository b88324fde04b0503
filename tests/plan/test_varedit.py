"""Conditioned models as plans: pre-filled tapes, gated references, memory rows (conditioned sheet, sections 1 to 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

from nextscale.plan.buffers import accesses
from nextscale.plan.families.infinity import INFINITY_TOKENIZER, infinity_model, infinity_plan
from nextscale.plan.methods import FastVAR
from nextscale.plan.schedules import schedule, squares, tokens
from nextscale.plan.types import Guidance, Plan, Sampling, Segment, Tape, TapeWrite

Sound = Callable[[Plan], Plan]
DEPTH = 4


def infinity(scales: int = 13) -> Plan:
    grids = schedule("infinity-1m")[:scales]
    return infinity_plan("infinity", infinity_model(DEPTH, 512, 4), INFINITY_TOKENIZER, grids, Sampling(0))


def lengths(plan: Plan) -> list[int]:
    """L of the sheet: tokens of each step."""
    return [tokens(grid) for grid in plan.schedule]


def varedit(scales: int = 13) -> Plan:
    """The source picture's rows stand before every tape; layer 0 reads them at the step's own size instead."""
    plan = infinity(scales)
    sizes, source = lengths(plan), lengths(plan)[-1]
    totals = [0, *accumulate(sizes)]
    steps = []
    for step in plan.steps:
        layers = []
        for layer in step.layers:
            if layer.index == 0:
                aligned = Segment("source.00", totals[step.scale], sizes[step.scale])
                layers.append(replace(layer, past=(aligned, *layer.past)))
            else:
                tape = f"var.{layer.index:02d}"
                writes = tuple(TapeWrite(w.tape, w.start + source, w.length) for w in layer.writes)
                past = (Segment(tape, 0, source + totals[step.scale]),)
                layers.append(replace(layer, past=past, writes=writes))
        steps.append(replace(step, layers=tuple(layers)))
    tapes = [plan.tapes[0], *(replace(tape, prefilled=source) for tape in plan.tapes[1:])]
    tapes.append(Tape("source.00", "var", 0, 4, prefilled=sum(sizes)))
    return replace(plan, steps=tuple(steps), tapes=tuple(tapes))


def test_varedit_lengths(sound: Sound) -> None:
    """past(layer >= 1, k) = L_K + S_k and past(0, k) = L_k + S_k."""
    for scales, source in ((13, 4096), (10, 1024), (7, 256)):
        plan = sound(varedit(scales))
        sizes = lengths(plan)
        sums = [0, *accumulate(sizes)]
        assert sizes[-1] == source
        assert [step.layers[1].past_rows for step in plan.steps] == [source + total for total in sums[:-1]]
        assert [step.layers[0].past_rows for step in plan.steps] == [sums[k + 1] for k in range(scales)]


def test_varedit_memory() -> None:
    """8B at 1024 px, two rows: 4.4 GiB of source and 6.9 GiB of targets, at 560 KiB per token and row."""
    plan = varedit()
    rows = plan.tape_rows("var.01")
    assert rows == 4096 + 6425
    assert round(4096 * 560 * 2 / 2**20, 1) == 4.4
    assert round((rows - 4096) * 560 * 2 / 2**20, 1) == 6.9


def test_varedit_composes_with_fastvar(sound: Sound) -> None:
    plan = sound(FastVAR({9: 0.4, 10: 0.5}, 8, layers=(0, 1), skip=(11, 12))(varedit()))
    last = plan.steps[-1]
    assert [layer.past_rows for layer in last.layers] == [
        1600 + 1497 + 615,
        4096 + 1497 + 615,
        4096 + 2521,
        4096 + 2521,
    ]


def test_a_memory_row_from_the_fourth_scale_on(sound: Sound) -> None:
    """CSD-VAR's content memory: one learned row of layer 0, read from scale 3 on."""
    plan = infinity()
    steps = list(plan.steps[:3])
    for step in plan.steps[3:]:
        first = replace(step.layers[0], past=(*step.layers[0].past, Segment("memory.00", 0, 1)))
        steps.append(replace(step, layers=(first, *step.layers[1:])))
    tapes = (*plan.tapes, Tape("memory.00", "var", 0, 4, prefilled=1))
    plan = sound(replace(plan, steps=tuple(steps), tapes=tapes))
    assert [step.layers[0].past_rows for step in plan.steps[:5]] == [0, 1, 5, 21 + 1, 57 + 1]
    assert plan.steps[4].layers[1].past_rows == 57


def test_gated_references_have_a_softmax_of_their_own(sound: Sound) -> None:
    """EchoGen: two tokens in the first step, 4096 content rows behind a gate in every layer, three guidance rows."""
    terms = ((0.0, 0.0, 1.0), (0.0, 1.0, -1.0), (1.0, -1.0, 0.0))  # l0 + gt (lt - l0) + gi (lti - lt)
    guidance = Guidance(("text_and_image", "text", "none"), (terms,) * 13, ("text_scale", "image_scale"))
    plan = infinity()
    plan = replace(
        plan, guidance=guidance, steps=tuple(replace(step, guidance_rows=len(guidance.rows)) for step in plan.steps)
    )
    steps = []
    for step in plan.steps:
        layers = []
        for layer in step.layers:
            content = Segment(f"content.{layer.index:02d}", 0, 4096, gate="control_attn")
            past = tuple(replace(segment, length=segment.length + 1) for segment in layer.past)
            writes = tuple(
                replace(w, length=2) if step.order == 0 else replace(w, start=w.start + 1) for w in layer.writes
            )
            layers.append(replace(layer, past=(*past, content), writes=writes))
        steps.append(replace(step, layers=tuple(layers), tokens_in=step.tokens_in + (step.order == 0)))
    tapes = (*plan.tapes, *(Tape(f"content.{i:02d}", "var", i, 4, prefilled=4096) for i in range(DEPTH)))
    plan = sound(replace(plan, steps=tuple(steps), tapes=tapes))
    assert [step.layers[2].past_rows for step in plan.steps[:3]] == [0, 2, 6]
    assert {step.rows for step in plan.steps} == {3}
    reads = [a.graph for a in accesses(plan) if a.buffer == "tape.content.k.02" and a.mode == "read"]
    assert reads == list(range(13))


def test_two_groups_of_heads_with_tapes_of_their_own(sound: Sound) -> None:
    """HACK-style: contextual heads hold 60 rows, structural ones 200; both groups see the whole current scale."""
    plan = infinity(9)
    budgets = {"contextual": 60, "structural": 500}
    held = dict.fromkeys(budgets, 0)
    steps = []
    for step in plan.steps:
        past, writes = [], []
        last = step is plan.steps[-1]
        for group, budget in budgets.items():
            if held[group]:
                past.append(Segment(f"{group}.00", 0, held[group]))
            end = held[group] + step.tokens_in
            if not last and end > budget:
                writes.append(TapeWrite(f"{group}.00", 0, budget, "replace"))
            elif not last:
                writes.append(TapeWrite(f"{group}.00", held[group], step.tokens_in))
            held[group] = min(end, budget)
        layer = replace(step.layers[0], past=tuple(past), writes=tuple(writes))
        steps.append(replace(step, layers=(layer, *step.layers[1:])))
    tapes = (*(Tape(f"{g}.00", "var", 0, 2, alternating=True) for g in budgets), *plan.tapes[1:])
    plan = sound(replace(plan, steps=tuple(steps), tapes=tapes))
    assert [[s.length for s in step.layers[0].past] for step in plan.steps[4:]] == [
        [57, 57],
        [60, 121],
        [60, 265],
        [60, 500],
        [60, 500],
    ]


def test_flexvar_hands_on_the_last_codes(sound: Sound) -> None:
    plan = infinity()
    steps = [
        replace(step, next_input=replace(step.next_input, rule="last_codes", down="bicubic"), sampling=Sampling(0))
        for step in plan.steps
    ]
    plan = sound(replace(plan, steps=tuple(steps), schedule=squares(1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)))
    sums = [(a.graph, a.mode) for a in accesses(plan) if a.buffer.startswith("state.code_sum")]
    assert sums == [(12, "replace"), (13, "read")]
