"""How far a bundle's numbers are from eager PyTorch's, step by step, where both see the same tokens.

The reference samples a picture; the bundle is then given those tokens, so that one flipped token cannot hide or excuse
what follows. Beside it stands how often both pick the same tokens: from their own logits in that same context, and
when each samples on its own from the same noise, where every flip changes all later steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from nextscale.compare.sides import Ask, EagerSide, Run, Side
from nextscale.export.models.sampling import per_draw, sample
from nextscale.export.models.step import Draw, drawn_from, no_tokens
from nextscale.export.verify import ROUNDING_SPREADS
from nextscale.plan.types import Plan, Step
from nextscale.runtime.noise import SAMPLING, step_uniforms

Size = Callable[[NDArray[np.float32]], NDArray[np.float64]]  # of a difference (B, ...), for each picture


@dataclass(frozen=True)
class PictureStep:
    """One picture at one step. ``absolute`` is the error of its logits, ``spread`` the reference's std.

    The error is the largest, of int8 the root mean square (:mod:`nextscale.export.verify` says why).

    ``equal_forced`` and ``equal_free`` are shares of equal tokens in [0, 1].
    """

    absolute: float
    spread: float
    equal_forced: float
    equal_free: float

    @property
    def error(self) -> float:
        """What is judged: in units of max(1, std), as in an export's own check."""
        return self.absolute / max(1.0, self.spread)


@dataclass(frozen=True)
class PictureParity:
    """One picture: every step, and the error of its pixels in [0, 1], likewise.

    ``apart`` is the largest difference between the picture made whole, as users have it, and the one made step by step,
    of which the logits are: one that is not 0 is an error, however small.
    ``eager_moves`` says how far the reference's own logits move (in the same unit as ``error``) when its residual
    stream is disturbed by rounding; None where that was not looked at, as nothing is wrong with the picture.
    """

    steps: tuple[PictureStep, ...]
    pixels: float
    eager_moves: float | None = None
    apart: float = 0.0

    @property
    def error(self) -> float:
        """The worst of all steps and the pixels; not a number counts as infinite."""
        errors = [*(step.error for step in self.steps), self.pixels]
        return max(e if e == e else np.inf for e in errors)


def forced_runs(side: Side, ask: Ask, reference: Run) -> tuple[Run, Run]:
    """Under the reference's tokens: step by step with logits, and whole, as users have it; PyTorch knows one way."""
    forced = replace(ask, tokens=reference.tokens)
    stepwise = side.run(forced, logits=True)
    return stepwise, stepwise if isinstance(side, EagerSide) else side.run(forced)


def picture_parities(
    plan: Plan, ask: Ask, reference: Run, free: Run, forced: Run, whole: Run | None = None, precision: str = "fp32"
) -> list[PictureParity]:
    """Every picture of a run; ``reference`` and ``free`` sampled their own tokens, the others had the reference's.

    Pixels are those of ``whole``; without it those of ``forced``, which has the logits.
    """
    size = _size(precision)
    by_step = [
        _step(plan, step, ask, size, reference.logits[i], forced.logits[i], reference.tokens[i], free.tokens[i])
        for i, step in enumerate(plan.steps)
    ]
    made = forced if whole is None else whole
    pixels = size(made.pictures - reference.pictures)
    apart = _largest(np.nan_to_num(made.pictures, nan=-1.0) - np.nan_to_num(forced.pictures, nan=-1.0))
    return [
        PictureParity(tuple(steps[image] for steps in by_step), float(pixels[image]), apart=float(apart[image]))
        for image in range(len(ask.labels))
    ]


def _step(
    plan: Plan,
    step: Step,
    ask: Ask,
    size: Size,
    wanted: NDArray[np.float32],
    got: NDArray[np.float32],
    tokens: NDArray[np.int32],
    free: NDArray[np.int32],
) -> list[PictureStep]:
    absolute, drawn = size(got - wanted), drawn_tokens(plan, step, ask, got)
    return [
        PictureStep(
            absolute=float(absolute[image]),
            spread=float(wanted[image].std()),
            equal_forced=float((drawn[image] == tokens[image]).mean()),
            equal_free=float((free[image] == tokens[image]).mean()),
        )
        for image in range(len(wanted))
    ]


def drawn_tokens(plan: Plan, step: Step, ask: Ask, logits: NDArray[np.float32]) -> NDArray[np.int32]:
    """What a step draws from guided logits (B, n, head outputs) with the noise of ``ask``: (B, n, *draws) int32."""
    (images, n, outputs), model = logits.shape, plan.model(step.weight_set)
    if step.sampling is None:
        return np.full((images, n, *model.draws), -1, np.int32)
    noise = torch.from_numpy(step_uniforms(ask.seed, range(images), step.order, SAMPLING, (n, outputs)))
    draw = Draw(
        guidance=torch.ones(images, 1),  # it is done
        temperature=torch.full((images,), ask.temperature),
        top_p=torch.full((images,), ask.top_p),
        noise=noise,
        tokens=no_tokens(images, step, model.draws),
    )
    with torch.inference_mode():
        each = drawn_from(torch.from_numpy(logits), step.sampling, draw, model.vocabulary)
        tokens = sample(each, per_draw(noise, model.vocabulary), draw.tokens.flatten(1))
    made: NDArray[np.int32] = tokens.reshape(images, n, *model.draws).numpy()
    return made


def moved(
    before: Sequence[NDArray[np.float32]], after: Sequence[NDArray[np.float32]], precision: str = "fp32"
) -> NDArray[np.float64]:
    """How far logits are apart, by picture: the worst step's difference over max(1, std)."""
    size = _size(precision)
    worst = np.zeros(len(before[0]))
    for a, b in zip(before, after, strict=True):
        worst = np.maximum(worst, size(b - a) / np.maximum(1.0, a.reshape(len(a), -1).std(axis=1)))
    return worst


def _size(precision: str) -> Size:
    """What counts as the size of an error."""
    return _mean if precision in ROUNDING_SPREADS else _largest


def _mean(difference: NDArray[np.float32]) -> NDArray[np.float64]:
    """The root mean square of each picture's values; NaN stays NaN."""
    flat = difference.reshape(len(difference), -1).astype(np.float64)
    mean: NDArray[np.float64] = np.sqrt(np.square(flat).mean(axis=1))
    return mean


def _largest(difference: NDArray[np.float32]) -> NDArray[np.float64]:
    """The largest absolute value of each picture; NaN stays NaN."""
    largest: NDArray[np.float64] = np.abs(difference).reshape(len(difference), -1).max(axis=1).astype(np.float64)
    return largest
