"""The language model of Qwen2 and Qwen2-VL as a text encoder (HART): causal, grouped key heads, rotary positions.

Yang et al., "Qwen2 Technical Report" (2024), section 2.2. In text all three axes of Qwen2-VL's positions are equal, so
its sections of the rotary frequencies are the plain ones. Keys are those below the language model's own name: one file
says ``layers.0.mlp.up_proj.weight``, another ``model.layers.0. ...``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models.contract import Derived, Rotation
from nextscale.export.models.layers import RMSNorm
from nextscale.export.models.mixed_rope import turn
from nextscale.export.text_encoder import TextEncoder, attention, embed, heads_of, hidden_from, project
from nextscale.export.trace import POSITIONS
from nextscale.plan.conditioning import Shape
from nextscale.runtime.manifest import IMAGES


@dataclass(frozen=True)
class Qwen2Sizes:
    """The numbers of a language model; ``theta`` is the base of the rotary frequencies."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    key_heads: int
    head_dim: int
    ffn_width: int
    theta: float
    eps: float


class SelfAttention(nn.Module):
    """Causal attention over rotated queries and keys."""

    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        inner, keys = sizes.heads * sizes.head_dim, sizes.key_heads * sizes.head_dim
        self.q_proj = nn.Linear(sizes.width, inner)
        self.k_proj, self.v_proj = nn.Linear(sizes.width, keys), nn.Linear(sizes.width, keys)
        self.o_proj = nn.Linear(inner, sizes.width, bias=False)

    def forward(self, y: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, n, C) to the same shape; ``bias`` (B, 1, n, n), ``cos`` and ``sin`` (n or more, hd)."""
        q, k, v = (heads_of(project(y, layer), self.head_dim) for layer in (self.q_proj, self.k_proj, self.v_proj))
        n = y.shape[1]
        rotation = Rotation(cos[:n], sin[:n])
        mixed = attention(turn(q, rotation), turn(k, rotation), v, self.head_dim**-0.5, bias)
        return project(mixed, self.o_proj)


class FeedForward(nn.Module):
    """``down(silu(gate(y)) * up(y))``."""

    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(sizes.width, sizes.ffn_width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(sizes.ffn_width, sizes.width, bias=False)

    def forward(self, y: Tensor) -> Tensor:
        """(B, n, C) to the same shape."""
        return project(F.silu(project(y, self.gate_proj)) * project(y, self.up_proj), self.down_proj)


class Block(nn.Module):
    """Attention, then feed-forward, each behind its norm."""

    def __init__(self, sizes: Qwen2Sizes) -> None:
        super().__init__()
        self.self_attn = SelfAttention(sizes)
        self.mlp = FeedForward(sizes)
        self.input_layernorm = RMSNorm(sizes.width, sizes.eps)
        self.post_attention_layernorm = RMSNorm(sizes.width, sizes.eps)

    def forward(self, x: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, n, C) to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), bias, cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Qwen2Encoder(TextEncoder):
    """The language model without its head; features are its last hidden state, behind the last norm.

    A token sees the prefix and the tokens of its prompt up to itself; padding counts as positions but is seen by none.
    """

    DERIVED: ClassVar[Mapping[str, Derived]] = {
        "prefix_embedding": Derived(
            "embed_tokens.weight[ids of the system prompt], (1, P, C)", ("embed_tokens.weight",)
        ),
        "rope_cos": Derived("cos(position * theta^(-2j / hd)), both halves of a head alike, (P + T, hd)"),
        "rope_sin": Derived("sin(position * theta^(-2j / hd)), both halves of a head alike, (P + T, hd)"),
    }
    BLOCK_BUFFERS = ("rope_cos", "rope_sin")
    sizes: Qwen2Sizes

    def __init__(self, sizes: Qwen2Sizes, tokens: int, prefix: tuple[int, ...] = ()) -> None:
        super().__init__(sizes, tokens, prefix)
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.norm = RMSNorm(sizes.width, sizes.eps)

    @property
    def width(self) -> int:
        """The model's width."""
        return self.sizes.width

    @property
    def blocks(self) -> tuple[str, nn.ModuleList]:
        """As the base class has them."""
        return "layers", self.layers

    @property
    def bias_shape(self) -> Shape:
        """Alike for all heads."""
        return IMAGES, 1, POSITIONS, POSITIONS

    def fold(self) -> Self:
        """The rotary positions, and the rows of the prefix where there is one."""
        size = self.sizes.head_dim
        frequencies = 1.0 / self.sizes.theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
        angles = torch.arange(len(self.prefix) + self.tokens).float()[:, None] * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        tensors = {"rope_cos": angles.cos(), "rope_sin": angles.sin()}
        if self.prefix:
            rows = self.embed_tokens.weight.detach()[torch.tensor(self.prefix)]
            tensors["prefix_embedding"] = rows.float().unsqueeze(0)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        return self

    def computing(self, dtype: torch.dtype) -> Iterable[nn.Module]:
        """The embedding and every matrix with its bias."""
        return (m for m in self.modules() if m is self.embed_tokens or isinstance(m, nn.Linear))

    def begin(self, ids: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """x with the prefix before it, and the bias (B, 1, n, n): causality, and the lengths."""
        x, before = embed(ids, self.embed_tokens), len(self.prefix)
        if before:
            # A row of it for each prompt, told from the prompts: an expand would ask the trace for a number of images.
            rows = torch.where((length >= 0)[:, None, None], self.get_buffer("prefix_embedding"), 0.0)
            x = torch.cat((rows, x), dim=1)
        place = torch.arange(x.shape[1], device=ids.device)
        there = place < before + length[:, None]  # (B, n): the prefix and the prompt
        seen = there[:, None] & (place[None, :] <= place[:, None])  # (B, n, n): of each query, its keys
        return x, hidden_from(seen).unsqueeze(1)

    def finish(self, x: Tensor) -> Tensor:
        """The last norm of the prompt's own positions."""
        features: Tensor = self.norm(x[:, len(self.prefix) :])
        return features
