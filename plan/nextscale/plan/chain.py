"""The plain chain of a next-scale model: every scale a step, every layer in full, every key on its tape.

This is what methods start from. It says what upstream VAR does (fact sheet 1.5) as numbers.
"""

from __future__ import annotations

from dataclasses import replace

from nextscale.plan.errors import PlanError
from nextscale.plan.schedules import phi_index, scale_ratio, tokens, var_guidance
from nextscale.plan.types import (
    Grid,
    Guidance,
    Layer,
    Model,
    NextInput,
    Plan,
    Sampling,
    Segment,
    Step,
    SubLayer,
    Tape,
    TapeWrite,
    Tokenizer,
)


def tape_id(weight_set: str, layer: int) -> str:
    """The id of a layer's tape; its buffers are ``tape.<weight set>.k.<layer>`` and ``.v.``."""
    return f"{weight_set}.{layer:02d}"


def next_scale_plan(
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    schedule: tuple[Grid, ...],
    sampling: Sampling,
    weight_set: str = "var",
    guidance: Guidance | None = None,
    defaults: tuple[tuple[str, float], ...] = (),
    resize: tuple[str, str] = ("bicubic", "area"),
) -> Plan:
    """The full plan of one model over a schedule of ``(h, w)`` grids.

    Every step reads all earlier rows of each layer's tape and appends its own; the last step leaves nothing, for nobody
    reads it. A text that is a prefix goes into the first step, whose last token alone comes out. Without ``guidance``
    it is VAR's ramp. ``resize`` are the modes up to the code sum and down to the next input.
    Raises :class:`PlanError` for a schedule that cannot be run.
    """
    if len(schedule) < 2 or any(side < 1 for grid in schedule for side in grid):
        raise PlanError(f"schedule {schedule} cannot be run: it needs two or more grids with sides of 1 or more")
    prefix = model.text.tokens if model.text and model.text.use == "prefix" else 0
    if prefix and schedule[0] != (1, 1):
        raise PlanError(f"a text that is a prefix gives one token, and the schedule starts with {schedule[0]}")
    guidance = guidance or var_guidance(schedule)
    steps, rows = [], 0
    for scale in range(len(schedule)):
        n = prefix if prefix and scale == 0 else tokens(schedule[scale])
        steps.append(
            _step(scale, n, rows, model, tokenizer, schedule, sampling, weight_set, len(guidance.rows), resize)
        )
        rows += n
    return Plan(
        name=name,
        models=((weight_set, model),),
        tokenizer=tokenizer,
        schedule=schedule,
        guidance=guidance,
        steps=tuple(steps),
        tapes=tuple(Tape(tape_id(weight_set, i), weight_set, i, model.heads) for i in range(model.depth)),
        defaults=defaults,
    )


def _step(
    scale: int,
    n: int,
    past: int,
    model: Model,
    tokenizer: Tokenizer,
    schedule: tuple[Grid, ...],
    sampling: Sampling,
    weight_set: str,
    guidance_rows: int,
    resize: tuple[str, str],
) -> Step:
    """One scale in full, of ``n`` tokens after ``past`` rows on every tape."""
    last = scale == len(schedule) - 1
    layers = []
    for i in range(model.depth):
        tape = tape_id(weight_set, i)
        layers.append(
            Layer(
                index=i,
                sub_layers=tuple(SubLayer(sub) for sub in model.sub_layers),
                past=(Segment(tape, 0, past),) if past else (),
                writes=() if last else (TapeWrite(tape, past, n),),
            )
        )
    return Step(
        order=scale,
        scale=scale,
        grid=schedule[scale],
        tokens_in=n,
        tokens_out=tokens(schedule[scale]),
        layers=tuple(layers),
        sampling=replace(sampling, smooth_ratio=scale_ratio(scale, len(schedule))) if sampling.smooth else sampling,
        next_input=NextInput(
            rule="code_sum",
            grid=None if last else schedule[scale + 1],
            up=resize[0],
            down=resize[1],
            phi=phi_index(scale, len(schedule), tokenizer.phi) if tokenizer.phi else None,
        ),
        weight_set=weight_set,
        guidance_rows=guidance_rows,
    )
