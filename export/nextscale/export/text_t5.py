"""The encoder of T5 (flan-t5 in Infinity): relative positions as a bias on the scores, RMS norms, gated feed-forward.

Raffel et al., "Exploring the Limits of Transfer Learning" (2020), section 2.1, with the gated GELU of version 1.1. Keys
are those of the published files: ``shared.weight``, ``encoder.block.0.layer.0.SelfAttention.q.weight`` ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models.contract import Derived
from nextscale.export.models.layers import RMSNorm
from nextscale.export.text_encoder import TextEncoder, attention, embed, heads_of, hidden_from, project
from nextscale.plan.conditioning import TEXT, Shape
from nextscale.runtime.manifest import IMAGES

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
BIAS_KEY = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


@dataclass(frozen=True)
class T5Sizes:
    """The numbers of an encoder. ``buckets`` of distances share one learned bias a head, up to ``max_distance``."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    head_dim: int
    ffn_width: int
    buckets: int
    max_distance: int
    activation: str
    gated: bool
    eps: float


class SelfAttention(nn.Module):
    """Attention without a scale; only the first block's holds the relative positions, which all blocks use."""

    def __init__(self, sizes: T5Sizes, first: bool) -> None:
        super().__init__()
        inner = sizes.heads * sizes.head_dim
        self.q, self.k, self.v = (nn.Linear(sizes.width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, sizes.width, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(sizes.buckets, sizes.heads)
        self.head_dim = sizes.head_dim

    def forward(self, y: Tensor, bias: Tensor) -> Tensor:
        """(B, T, C) to the same shape; ``bias`` (B, H, T, T)."""
        q, k, v = (heads_of(project(y, layer), self.head_dim) for layer in (self.q, self.k, self.v))
        return project(attention(q, k, v, 1.0, bias), self.o)


class FeedForward(nn.Module):
    """``wo(act(wi_0(y)) * wi_1(y))``, or ``wo(act(wi(y)))`` of the first T5."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.inputs = ("wi_0", "wi_1") if sizes.gated else ("wi",)
        for name in self.inputs:
            setattr(self, name, nn.Linear(sizes.width, sizes.ffn_width, bias=False))
        self.wo = nn.Linear(sizes.ffn_width, sizes.width, bias=False)
        self.act = ACTIVATIONS[sizes.activation]

    def forward(self, y: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        first, *gate = (project(y, getattr(self, name)) for name in self.inputs)
        hidden = self.act(first)
        return project(hidden * gate[0] if gate else hidden, self.wo)


class AttentionLayer(nn.Module):
    """``x + SelfAttention(norm(x))``."""

    def __init__(self, sizes: T5Sizes, first: bool) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(sizes, first)
        self.layer_norm = RMSNorm(sizes.width, sizes.eps)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        update: Tensor = self.SelfAttention(self.layer_norm(x), bias)
        return x + update


class FeedForwardLayer(nn.Module):
    """``x + FeedForward(norm(x))``."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(sizes)
        self.layer_norm = RMSNorm(sizes.width, sizes.eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        update: Tensor = self.DenseReluDense(self.layer_norm(x))
        return x + update


class Block(nn.Module):
    """Attention, then feed-forward."""

    def __init__(self, sizes: T5Sizes, first: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList((AttentionLayer(sizes, first), FeedForwardLayer(sizes)))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        out: Tensor = self.layer[1](self.layer[0](x, bias))
        return out


class Stack(nn.Module):
    """The blocks and the last norm, under the name that they share."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(sizes, index == 0) for index in range(sizes.depth))
        self.final_layer_norm = RMSNorm(sizes.width, sizes.eps)


class T5Encoder(TextEncoder):
    """The whole encoder; every token sees every token of its prompt."""

    DERIVED: ClassVar[Mapping[str, Derived]] = {
        "position_bias": Derived("relative_attention_bias of the bucket of (key - query), (1, H, T, T)", (BIAS_KEY,))
    }
    sizes: T5Sizes

    def __init__(self, sizes: T5Sizes, tokens: int, prefix: tuple[int, ...] = ()) -> None:
        super().__init__(sizes, tokens, prefix)
        self.shared = nn.Embedding(sizes.vocabulary, sizes.width)
        self.encoder = Stack(sizes)

    @property
    def width(self) -> int:
        """The model's width."""
        return self.sizes.width

    @property
    def blocks(self) -> tuple[str, nn.ModuleList]:
        """As the base class has them."""
        return "encoder.block", self.encoder.block

    @property
    def bias_shape(self) -> Shape:
        """Of every head."""
        return IMAGES, self.sizes.heads, TEXT, TEXT

    def fold(self) -> Self:
        """The relative positions of ``tokens`` tokens as one bias for all blocks, (1, H, T, T)."""
        place = torch.arange(self.tokens)
        bucket = bucket_of(place[None, :] - place[:, None], self.sizes.buckets, self.sizes.max_distance)
        with torch.no_grad():
            bias = self.get_parameter(BIAS_KEY)[bucket].permute(2, 0, 1).unsqueeze(0).contiguous()
        self.register_buffer("position_bias", bias, persistent=False)
        return self

    def computing(self, dtype: torch.dtype) -> Iterable[nn.Module]:
        """The embedding and every matrix; in float16 not ``wo``, whose input leaves that type's range."""
        for name, module in self.named_modules():
            spared = dtype == torch.float16 and name.endswith(".wo")
            if module is self.shared or (isinstance(module, nn.Linear) and not spared):
                yield module

    def begin(self, ids: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """x, and the bias (B, H, T, T): relative positions, and the lengths."""
        tokens = ids.shape[1]
        seen = torch.arange(tokens, device=ids.device) < length[:, None]  # (B, T)
        bias = self.get_buffer("position_bias")[:, :, :tokens, :tokens]
        return embed(ids, self.shared), bias + hidden_from(seen)[:, None, None]

    def finish(self, x: Tensor) -> Tensor:
        """The last norm."""
        features: Tensor = self.encoder.final_layer_norm(x)
        return features


def bucket_of(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """The bucket of each ``key - query``, int64 of the same shape.

    Half of the buckets are for keys behind the query. Of each half, the first half holds one distance each; the second
    half grows logarithmically up to ``max_distance``, and the last bucket takes what is further away.
    """
    half = buckets // 2
    exact = half // 2
    away = distance.abs()
    # The order of these float32 operations decides which bucket a distance on a border falls into.
    far = exact + (torch.log(away.float() / exact) / math.log(max_distance / exact) * (half - exact)).long()
    bucket = torch.where(away < exact, away, far.clamp_max(half - 1))
    return bucket + half * (distance > 0)
