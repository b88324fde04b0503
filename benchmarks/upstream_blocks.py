"""The blocks of Infinity as upstream's eager code runs them, plain and with FastVAR: see upstream_infinity.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from upstream_fastvar import Remembering

from nextscale.plan.types import Grid, Layer, Model

EPS, MAX_SCALE_MUL = 1e-6, math.log(100)


class Text(NamedTuple):
    """What is made of a prompt once: the condition (R, C), adaLN before layers (R, 1, 6, C), text (R, T, C)."""

    cond: Tensor
    shared: Tensor
    context: Tensor


def with_key_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict, and the biases of keys, all zero, where it lacks them."""
    zeros = {
        name.removesuffix("v_bias") + "zero_k_bias": torch.zeros_like(t)
        for name, t in state.items()
        if "v_bias" in name
    }
    return {**zeros, **state}


class SelfAttention(nn.Module):
    """Fused qkv with a bias joined for every call, q and k of unit length; keys and values are remembered."""

    zero_k_bias: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.heads, width = model.heads, model.width
        self.scale_mul_1H11 = nn.Parameter(torch.empty(1, model.heads, 1, 1))
        self.mat_qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.register_buffer("zero_k_bias", torch.empty(width))
        self.past: tuple[Tensor, Tensor] | None = None  # (R, H, T, hd) each

    def forward(self, y: Tensor, rope: Tensor | None = None) -> Tensor:
        """``y`` (R, m, C), the angles by which its tokens are rotated, None where they are not: (R, m, C)."""
        rows, m, width = y.shape
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(y, self.mat_qkv.weight, bias).view(rows, m, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (R, H, m, hd)
        q = F.normalize(q, dim=-1, eps=1e-12).mul(self.scale_mul_1H11.clamp_max(MAX_SCALE_MUL).exp())
        k = F.normalize(k, dim=-1, eps=1e-12)
        if rope is not None:
            q, k = rotated(q, k, rope)
        if self.past is not None:
            k, v = torch.cat((self.past[0], k), dim=2), torch.cat((self.past[1], v), dim=2)
        self.past = k, v
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        joined: Tensor = self.proj(out.transpose(1, 2).reshape(rows, m, width))
        return joined


class TextAttention(nn.Module):
    """Attention to a prompt's tokens: of tokens, or of one learned query (``pool``)."""

    zero_k_bias: Tensor

    def __init__(self, width: int, text_width: int, heads: int, pool: bool = False) -> None:
        super().__init__()
        self.heads, self.pool = heads, pool
        self.mat_q = nn.Parameter(torch.empty(1, heads, width // heads)) if pool else nn.Linear(width, width)
        self.mat_kv, self.proj = nn.Linear(text_width, 2 * width, bias=False), nn.Linear(width, width)
        self.v_bias = nn.Parameter(torch.empty(width))
        self.register_buffer("zero_k_bias", torch.empty(width))

    def forward(self, y: Tensor, text: Tensor) -> Tensor:
        """``y`` (R, m, C), which pooling does not look at, and text (R, T, width): (R, m, C), or (R, 1, C)."""
        rows = len(text)
        kv = F.linear(text, self.mat_kv.weight, torch.cat((self.zero_k_bias, self.v_bias)))
        k, v = kv.view(rows, text.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # (R, H, T, hd)
        if isinstance(self.mat_q, nn.Linear):
            q = self.mat_q(y).view(rows, y.shape[1], self.heads, -1).transpose(1, 2)
        else:
            q = self.mat_q.unsqueeze(2).expand(rows, -1, -1, -1)  # (R, H, 1, hd)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        joined: Tensor = self.proj(out)
        return joined


class FeedForward(nn.Module):
    """``fc2(gelu_tanh(fc1(y)))``."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(model.width, model.ffn_width), nn.Linear(model.ffn_width, model.width)

    def forward(self, y: Tensor) -> Tensor:
        """(R, m, C) to the same shape."""
        update: Tensor = self.fc2(F.gelu(self.fc1(y), approximate="tanh"))
        return update


class Block(Remembering):
    """Self-attention, attention to the text and FFN."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, model.width))
        self.sa = SelfAttention(model)
        self.ca_norm = nn.LayerNorm(model.width, eps=EPS)
        self.ca = TextAttention(model.width, model.width, model.heads)
        self.ffn = FeedForward(model)

    def forward(self, x: Tensor, text: Text, rope: Tensor, layer: Layer, grid: Grid, cached: Grid | None) -> Tensor:
        """The residual stream (R, n, C) of a scale; ``cached`` is the cache scale's grid, None where none is pruned."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (text.shared + self.ada_gss).unbind(2)  # (R, 1, C) each

        def sa(tokens: Tensor, index: Tensor | None) -> Tensor:
            update: Tensor = self.sa(modulated(tokens, scale1, shift1), at(rope, index)).mul_(gamma1)
            return update

        def ca(tokens: Tensor, index: Tensor | None) -> Tensor:
            update: Tensor = self.ca(self.ca_norm(tokens), text.context).float()  # outside an autocast it is already
            return update

        def ffn(tokens: Tensor, index: Tensor | None) -> Tensor:
            update: Tensor = self.ffn(modulated(tokens, scale2, shift2)).mul(gamma2)
            return update

        return self.updated(x, {"sa": sa, "ca": ca, "ffn": ffn}, layer, grid, cached)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``LN(x) * (1 + scale) + shift``."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS).mul(scale.add(1)).add_(shift)


def rotated(q: Tensor, k: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
    """q and k (R, H, m, hd) by interleaved pairs; angles are (2, 1, 1, 1, m, hd / 2), or as :func:`at` has them."""
    a, b = torch.stack((q, k)).unflatten(-1, (-1, 2)).unbind(-1)  # (2, R, H, m, hd / 2) each
    cos, sin = rope
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    return turned[0], turned[1]


def at(rope: Tensor, index: Tensor | None) -> Tensor:
    """The angles of kept tokens (R, m): (2, 1, R, 1, m, hd / 2); all of them where it is None."""
    return rope if index is None else rope[:, 0, 0, 0][:, index][:, None, :, None]
