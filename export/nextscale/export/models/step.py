"""The end of a step: head, guidance, filters, sampling, code lookup, code sum and the next input map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.export.models.contract import Quantizer, Transformer
from nextscale.export.models.sampling import filtered, guided, per_draw, sample, smooth_weights
from nextscale.plan.errors import PlanError
from nextscale.plan.types import Plan, Sampling, Step

Refine = Callable[[Tensor], Tensor]  # codes (B, n, Z) of drawn tokens to what is added to them


class Draw(NamedTuple):
    """What a caller decides for a step: guidance (B, G), temperature and top_p (B,), noise (B, n, head outputs)

    uniforms, tokens (B, n, *draws) int32 with -1 where one is to be sampled, the second noise field of ``more_smooth``,
    and the residual diffusion's noise (B, n, its steps, Z).
    """

    guidance: Tensor
    temperature: Tensor
    top_p: Tensor
    noise: Tensor
    tokens: Tensor
    smooth_noise: Tensor | None = None
    diffusion_noise: Tensor | None = None


class Prediction(NamedTuple):
    """Guided logits (B, n, head outputs), tokens (B, n, *draws) int32, the new code sum (B, Z, Sh, Sw), the next map

    (B, n_next, token width).
    """

    logits: Tensor
    tokens: Tensor
    code_sum: Tensor
    next_map: Tensor | None


def predict(
    plan: Plan,
    step: Step,
    transformer: Transformer,
    quantize: Quantizer,
    x: Tensor,
    head: Tensor,
    draw: Draw,
    code_sum: Tensor | None,
) -> Prediction:
    """From the residual stream of all rows (R, n_in, C) to tokens and what the next step needs.

    The head, with its adaLN (R, 2, C), reads the last ``tokens_out`` tokens of it.
    """
    x = x[:, -step.tokens_out :]

    def refine(codes: Tensor) -> Tensor:
        if draw.diffusion_noise is None:
            raise PlanError(f"step {step.order} refines its codes by diffusion and needs that noise")
        return transformer.refine(x, codes, draw.guidance, draw.diffusion_noise)

    logits = transformer.logits(x, head)
    return after_head(plan, step, quantize, logits, draw, code_sum, refine if step.diffusion else None)


def after_head(
    plan: Plan,
    step: Step,
    quantize: Quantizer,
    logits: Tensor,
    draw: Draw,
    code_sum: Tensor | None,
    refine: Refine | None = None,
) -> Prediction:
    """The same from the head's logits of all rows (R, n, head outputs)."""
    if step.sampling is None:
        raise PlanError(f"step {step.order} ({step.kind}) does not sample")
    vocabulary = plan.model(step.weight_set).vocabulary
    guided_logits, logits = shaped(logits, step.sampling, draw, vocabulary)
    drawn = sample(logits, per_draw(draw.noise, vocabulary), draw.tokens.flatten(1))
    tokens = drawn.reshape(draw.tokens.shape)
    codes = quantize.codes(tokens, step.grid)  # (B, Z, h, w)
    mixed = mixed_codes(quantize, logits, step, draw) if step.sampling.smooth else codes
    if refine is not None:
        rest = refine(codes.flatten(2).transpose(1, 2))  # (B, n, Z), of the drawn codes also where others are mixed
        mixed = mixed + rest.transpose(1, 2).reshape(mixed.shape)
    added = quantize.contribution(mixed, plan.code_grid, step.next_input.up, step.next_input.phi)
    code_sum = added if code_sum is None else code_sum + added
    next_map = quantize.next_input(code_sum, step.next_input) if step.next_input.grid else None
    return Prediction(guided_logits, tokens, code_sum, next_map)


def shaped(logits: Tensor, sampling: Sampling, draw: Draw, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Head output (G * B, n, head outputs) through the plan's order.

    Returns the guided logits (B, n, head outputs) and those that are drawn from, (B, n * draws, vocabulary).
    """
    at = sampling.order.index("guidance") + 1 if "guidance" in sampling.order else 0
    guided_logits = _through(sampling.order[:at], logits, sampling, draw, vocabulary)
    return guided_logits, drawn_from(guided_logits, sampling, draw, vocabulary)


def drawn_from(guided_logits: Tensor, sampling: Sampling, draw: Draw, vocabulary: int) -> Tensor:
    """Guided logits (B, n, head outputs) through what the plan has after guidance: (B, n * draws, vocabulary)."""
    at = sampling.order.index("guidance") + 1 if "guidance" in sampling.order else 0
    return per_draw(_through(sampling.order[at:], guided_logits, sampling, draw, vocabulary), vocabulary)


def _through(stages: Sequence[str], logits: Tensor, sampling: Sampling, draw: Draw, vocabulary: int) -> Tensor:
    """Logits through some stages; a temperature before guidance is for all rows, as many for a picture as it has."""
    rows = draw.guidance.shape[1] if "guidance" in stages else 1
    for stage in stages:
        if stage == "guidance":
            logits, rows = guided(logits, draw.guidance), 1
        elif stage == "temperature":
            temperature = draw.temperature if rows == 1 else draw.temperature.repeat(rows)
            logits = logits / temperature[:, None, None]
        elif stage == "top_p":  # together with top_k, whose sorted values it needs
            logits = filtered(per_draw(logits, vocabulary), sampling.top_k, draw.top_p)
        elif stage != "top_k":
            raise PlanError(f"sampling stage {stage!r} is unknown; known are guidance, temperature, top_k, top_p")
    return logits


def mixed_codes(quantize: Quantizer, logits: Tensor, step: Step, draw: Draw) -> Tensor:
    """``more_smooth``: the mixture of all codes in place of the drawn one's, (B, Z, h, w) from filtered logits."""
    if draw.smooth_noise is None or step.sampling is None:
        raise PlanError("a plan with more_smooth needs its second noise field")
    noise = draw.smooth_noise.reshape(logits.shape)
    weights = smooth_weights(logits, noise, step.sampling.smooth_ratio)
    return quantize.mixture(weights, step.grid)


def no_tokens(images: int, step: Step, draws: tuple[int, ...] = ()) -> Tensor:
    """Forced tokens of a step in which everything is sampled; ``draws`` are the model's."""
    return torch.full((images, step.tokens_out, *draws), -1, dtype=torch.int32)
