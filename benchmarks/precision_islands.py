"""What half graphs keep in float32, and what each of these parts would be in half precision, for bench_precision.py.

An island is a set of replacements of the eager model's own functions. Half arithmetic is element by element (PyTorch
rounds the result of each operation to the tensor's type), and sums go by pairs with every addition rounded, as a
kernel that reduces in half precision adds them up. Matrix products are left as they are: half in, half out, added up
in float32, as tensor cores do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale.export.models import attention as attentions
from nextscale.export.models import layers, pruning, step, var
from nextscale.export.models.autoencoder import GroupNorm
from nextscale.export.models.quantizer import MultiScaleQuantizer
from nextscale.export.models.sampling import gumbel
from nextscale.export.models.step import Draw
from nextscale.plan.types import Grid, NextInput, Sampling, Step

Replacement = tuple[object, str, object]  # whose attribute, its name, what it becomes


@dataclass(frozen=True)
class Island:
    """Something that stays float32 in the graphs of ``recipe``, and the replacements that make it half."""

    what: str
    halve: Callable[[torch.dtype], list[Replacement]]
    recipe: str = "full"


@contextmanager
def halved(island: Island | None, dtype: torch.dtype) -> Iterator[None]:
    """Within it the island computes in ``dtype``; nothing is changed for None."""
    with ExitStack() as stack:
        for owner, name, new in island.halve(dtype) if island else []:
            stack.enter_context(patch.object(owner, name, new))
        yield


def total(x: Tensor) -> Tensor:
    """Sum over the last axis (..., n) to (..., 1) by pairs, every addition rounded to the type of ``x``."""
    while x.shape[-1] > 1:
        x = F.pad(x, (0, x.shape[-1] % 2))
        x = x[..., ::2] + x[..., 1::2]
    return x


def standardised(x: Tensor, eps: float) -> Tensor:
    """``(x - mean) / sqrt(variance + eps)`` over the last axis, all of it in the type of ``x``."""
    away = x - total(x) / x.shape[-1]
    return away * (total(away * away) / x.shape[-1] + eps).rsqrt()


def qk_norm(dtype: torch.dtype) -> list[Replacement]:
    """Sum of squares, root and division of q and k; 1e-12 is 0 in float16."""

    def unit(x: Tensor) -> Tensor:
        return x / total(x * x).sqrt().clamp_min(layers.NORM_EPS)

    return [(attentions, "unit", unit)]


def softmax(dtype: torch.dtype) -> list[Replacement]:
    """Scores, their exponentials, the sum and the division of attention."""

    def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
        scores = q.transpose(1, 2) @ k.permute(1, 2, 3, 0) * scale  # (R, H, m, T)
        mass = torch.exp(scores - scores.amax(-1, keepdim=True))
        out = (mass / total(mass)) @ v.permute(1, 2, 0, 3)
        return out.transpose(1, 2).flatten(2)

    return [(attentions, "attention", attention)]


def norms(dtype: torch.dtype) -> list[Replacement]:
    """Every LayerNorm of the transformer: the residual stream is rounded, then mean, variance and quotient."""

    def layer_norm(x: Tensor) -> Tensor:
        return standardised(x.to(dtype), layers.EPS)

    return [(layers, "layer_norm", layer_norm)]


def residual_stream(dtype: torch.dtype) -> list[Replacement]:
    """What a step starts from is half, and so every sum with a sub-layer's update."""
    embed = var.VAR.embed

    def rounded(self: var.VAR, at: Step, source: Tensor, guidance_rows: int) -> Tensor:
        return embed(self, at, source, guidance_rows).to(dtype)

    return [(var.VAR, "embed", rounded)]


def guidance(dtype: torch.dtype) -> list[Replacement]:
    """The head's output stays half through guidance, temperature, top-k and top-p."""
    shaped = step.shaped

    def guided(logits: Tensor, weights: Tensor) -> Tensor:
        images, rows = weights.shape
        by_row = logits.reshape(rows, images, *logits.shape[1:])
        return (weights.T[:, :, None, None] * by_row).sum(dim=0)

    def in_half(logits: Tensor, sampling: Sampling, draw: Draw, vocabulary: int) -> tuple[Tensor, Tensor]:
        names = ("guidance", "temperature", "top_p")
        draw = draw._replace(**{name: getattr(draw, name).to(dtype) for name in names})
        return shaped(logits.to(dtype), sampling, draw, vocabulary)

    return [(step, "guided", guided), (step, "shaped", in_half)]


def noise(dtype: torch.dtype) -> list[Replacement]:
    """Uniforms, their two logarithms and the sum with the logits."""

    def sample(logits: Tensor, uniforms: Tensor, tokens: Tensor) -> Tensor:
        drawn = (logits.to(dtype) + gumbel(uniforms.to(dtype))).argmax(dim=-1).to(torch.int32)
        return torch.where(tokens >= 0, tokens, drawn)

    return [(step, "sample", sample)]


def code_sum(dtype: torch.dtype) -> list[Replacement]:
    """What a scale adds, the sum of all scales so far, and the next input map."""
    contribution, next_input = MultiScaleQuantizer.contribution, MultiScaleQuantizer.next_input

    def added(self: MultiScaleQuantizer, codes: Tensor, grid: Grid, up: str, phi: int | None) -> Tensor:
        return contribution(self, codes, grid, up, phi).to(dtype)

    def rounded(self: MultiScaleQuantizer, codes: Tensor, rule: NextInput) -> Tensor:
        return next_input(self, codes.float(), rule).to(dtype).float()

    return [(MultiScaleQuantizer, "contribution", added), (MultiScaleQuantizer, "next_input", rounded)]


def scales(dtype: torch.dtype) -> list[Replacement]:
    """The learned scale of q per head, and what each layer adds to the shared adaLN."""
    return [(var.VAR, "FLOAT32", frozenset())]


def pruning_scores(dtype: torch.dtype) -> list[Replacement]:
    """FastVAR's scores: the mean token and the squared distances from it."""

    def token_scores(x: Tensor) -> Tensor:
        x = x.to(dtype)
        away = x - (total(x.transpose(1, 2)) / x.shape[1]).transpose(1, 2)
        return total(away * away).squeeze(-1)

    return [(pruning, "token_scores", token_scores)]


def decoder_norms(dtype: torch.dtype) -> list[Replacement]:
    """GroupNorm of the decoder; logits do not see it, pixels do."""

    def forward(self: GroupNorm, x: Tensor) -> Tensor:
        groups = standardised(x.to(dtype).reshape(len(x), self.num_groups, -1), self.eps).reshape(x.shape)
        return groups * self.weight[:, None, None].to(dtype) + self.bias[:, None, None].to(dtype)

    return [(GroupNorm, "forward", forward)]


KEPT: list[Tensor] = []  # what the last recorded run kept, in order


@contextmanager
def recording() -> Iterator[None]:
    """Within it, what FastVAR keeps is written down for :func:`same_tokens`."""
    kept_index = pruning.kept_index
    KEPT.clear()

    def recorded(x: Tensor, kept: int) -> Tensor:
        KEPT.append(kept_index(x, kept))
        return KEPT[-1]

    with patch.object(pruning, "kept_index", recorded):
        yield


def same_tokens(dtype: torch.dtype) -> list[Replacement]:
    """Not in half: FastVAR keeps the tokens that float32 kept, which shows what other choices of them cost."""
    rest = iter(KEPT)
    return [(pruning, "kept_index", lambda x, kept: next(rest))]


ISLANDS = (
    Island("QK norm", qk_norm),
    Island("softmax statistics", softmax),
    Island("LayerNorm", norms),
    Island("residual stream", residual_stream),
    Island("q's scale, adaLN's offsets", scales),
    Island("guidance and filters", guidance),
    Island("sampling noise", noise),
    Island("code sum, input maps", code_sum),
    Island("decoder's GroupNorm", decoder_norms),
    Island("FastVAR's scores", pruning_scores, "fastvar"),
    Island("nothing, tokens kept as in float32", same_tokens, "fastvar"),
)
