"""The end of a step: head, guidance, filters, sampling, code lookup, code sum and the next input map."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.export.models.quantizer import MultiScaleQuantizer
from nextscale.export.models.sampling import filtered, guided, sample, smooth_weights
from nextscale.plan.errors import PlanError
from nextscale.plan.types import Grid, Sampling, Step


class Draw(NamedTuple):
    """What a caller decides for a step: guidance (B, G), temperature and top_p (B,), noise (B, n, V) uniforms,

    tokens (B, n) int32 with -1 where one is to be sampled, and the second noise field of ``more_smooth``.
    """

    guidance: Tensor
    temperature: Tensor
    top_p: Tensor
    noise: Tensor
    tokens: Tensor
    smooth_noise: Tensor | None = None


class Prediction(NamedTuple):
    """Guided logits (B, n, V), tokens (B, n) int32, the new code sum (B, Z, Sh, Sw), the next map (B, n_next, Z)."""

    logits: Tensor
    tokens: Tensor
    code_sum: Tensor
    next_map: Tensor | None


def shaped(logits: Tensor, sampling: Sampling, draw: Draw) -> tuple[Tensor, Tensor]:
    """Head output (G * B, n, V) through the plan's order: guided logits, and those that tokens are drawn from."""
    guided_logits = logits
    for stage in sampling.order:
        if stage == "guidance":
            logits = guided_logits = guided(logits, draw.guidance)
        elif stage == "temperature":
            logits = logits / draw.temperature[:, None, None]
        elif stage == "top_p":  # together with top_k, whose sorted values it needs
            logits = filtered(logits, sampling.top_k, draw.top_p)
        elif stage != "top_k":
            raise PlanError(f"sampling stage {stage!r} is unknown; known are guidance, temperature, top_k, top_p")
    return guided_logits, logits


def predict(
    quantize: MultiScaleQuantizer,
    step: Step,
    scales: int,
    final_grid: Grid,
    logits: Tensor,
    draw: Draw,
    code_sum: Tensor | None,
) -> Prediction:
    """From the head's logits of all rows (R, n, V) to tokens and what the next step needs."""
    if step.sampling is None:
        raise PlanError(f"step {step.order} ({step.kind}) does not sample")
    guided_logits, logits = shaped(logits, step.sampling, draw)
    tokens = sample(logits, draw.noise, draw.tokens)
    if step.sampling.smooth:
        if draw.smooth_noise is None:
            raise PlanError("a plan with more_smooth needs its second noise field")
        weights = smooth_weights(logits, draw.smooth_noise, step.scale / (scales - 1))
        codes = (weights @ quantize.embedding.weight).transpose(1, 2).reshape(tokens.shape[0], -1, *step.grid)
    else:
        codes = quantize.codes(tokens, step.grid)
    added = quantize.contribution(codes, final_grid, step.next_input.up, step.next_input.phi)
    code_sum = added if code_sum is None else code_sum + added
    next_map = quantize.next_input(code_sum, step.next_input) if step.next_input.grid else None
    return Prediction(guided_logits, tokens, code_sum, next_map)


def no_tokens(images: int, step: Step) -> Tensor:
    """Forced tokens of a step in which everything is sampled."""
    return torch.full((images, step.tokens_out), -1, dtype=torch.int32)
