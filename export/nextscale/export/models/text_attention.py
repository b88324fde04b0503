"""Attention to a prompt's tokens: cross-attention of blocks, and the pooling that makes one vector of a prompt.

Source: FoundationVision/Infinity; the sheet's sections 2.3 and 2.4. Module names are the published state dict's keys.
Rows see as many of the T tokens as their own prompt has: keys carry lanes that hide the others, so that attention is
the plain one, which never holds its scores (a mask makes ONNX Runtime hold them, and takes twice the time).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models.contract import Derived
from nextscale.export.models.ops import attention, linear
from nextscale.plan.conditioning import MASK_LANES
from nextscale.plan.errors import PlanError

HIDDEN = -4096.0  # times the lanes: far below any score, and a number in half precision too


class TextProjection(nn.Sequential):
    """What blocks attend to, of text: ``linear(gelu_tanh(linear(text)))``, keys ``0`` and ``2``."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__(nn.Linear(text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width))

    def forward(self, text: Tensor) -> Tensor:
        """(R, T, text width) to (R, T, C)."""
        hidden = linear(text, self.get_parameter("0.weight"), self.get_parameter("0.bias"))
        hidden = F.gelu(hidden, approximate="tanh")
        return linear(hidden, self.get_parameter("2.weight"), self.get_parameter("2.bias"))


class TextAttention(nn.Module):
    """What both have: keys and values of text through one matrix, whose bias is zero for keys, and a projection.

    ``fold`` makes the derived tensor ``kv_bias`` (2C).
    """

    kv_bias: Tensor

    DERIVED: ClassVar[Mapping[str, Derived]] = {"kv_bias": Derived("concat(0, v_bias)", ("v_bias",))}

    def __init__(self, width: int, text_width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.scale = 1 / math.sqrt(self.head_dim)
        self.mat_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def fold(self) -> None:
        """Keeps the derived tensor as a (non-persistent) buffer."""
        self.register_buffer("kv_bias", self._kv_bias().detach(), persistent=False)

    def _kv_bias(self) -> Tensor:
        if "kv_bias" in self._buffers:
            return self.kv_bias
        return torch.cat((torch.zeros_like(self.v_bias), self.v_bias))

    def keys_values(self, text: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Text (R, T, width) to keys and values (R, T, H, hd + lanes), in the dtype of the matrix.

        The lanes of keys of tokens that are not ``seen`` (R, T) push their scores below all others. Those of values
        are zeros: TensorRT's attention takes keys and values of one shape only.
        """
        kv = linear(text.to(self.mat_kv.weight.dtype), self.mat_kv.weight, self._kv_bias())
        key, value = (part.unflatten(-1, (self.heads, self.head_dim)) for part in kv.chunk(2, dim=-1))
        # Cast last, so that every precision computes the same lanes of all layers once.
        lanes = torch.where(seen, 0.0, HIDDEN)[:, :, None, None].expand(-1, -1, self.heads, MASK_LANES)
        return torch.cat((key, lanes.to(key.dtype)), dim=-1), F.pad(value, (0, MASK_LANES))

    def attend(self, q: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (R, m, H, hd) over the keys and values of :meth:`keys_values`: (R, m, C)."""
        q = F.pad(q, (0, MASK_LANES), value=1.0)
        out = attention(q, key.transpose(0, 1), value.transpose(0, 1), self.scale).unflatten(-1, (self.heads, -1))
        out = out[..., : self.head_dim].flatten(-2)
        return linear(out, self.proj.weight, self.proj.bias)


class CrossAttention(TextAttention):
    """A block's attention to the text: neither a norm of q and k nor positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, width, heads)
        self.mat_q = nn.Linear(width, width)

    def forward(self, y: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """``y`` (R, m, C) over keys and values of :meth:`keys_values`: (R, m, C)."""
        q = linear(y, self.mat_q.weight, self.mat_q.bias).unflatten(-1, (self.heads, self.head_dim))
        return self.attend(q, key, value)


class AttentionPool(TextAttention):
    """One learned query over a prompt. ``fold`` makes, too, ``query`` (1, 1, H, hd)."""

    query: Tensor

    DERIVED: ClassVar[Mapping[str, Derived]] = {
        **TextAttention.DERIVED,
        "query": Derived("mat_q with an axis of one token", ("mat_q",)),
    }

    def __init__(self, width: int, text_width: int) -> None:
        heads = max(1, text_width // (128 if width <= 4096 else 64))
        if width % heads:
            raise PlanError(
                f"a text of width {text_width} is pooled by {heads} heads, which a width of {width} cannot be shared by"
            )
        super().__init__(width, text_width, heads)
        self.mat_q = nn.Parameter(torch.randn(1, heads, width // heads))

    def fold(self) -> None:
        """Keeps the derived tensors as (non-persistent) buffers."""
        super().fold()
        self.register_buffer("query", self._query().detach(), persistent=False)

    def _query(self) -> Tensor:
        return self.query if "query" in self._buffers else self.mat_q.unsqueeze(1)

    def forward(self, text: Tensor, seen: Tensor) -> Tensor:
        """Text (R, T, width), of which tokens are ``seen`` (R, T), to one vector a row, (R, C)."""
        key, value = self.keys_values(text, seen)
        q = self._query().expand(text.shape[0], -1, -1, -1)
        return self.attend(q, key, value).squeeze(1)


def within(lengths: Tensor, tokens: int) -> Tensor:
    """Which of ``tokens`` tokens stand before each row's length (R,): (R, T)."""
    places = torch.arange(tokens, dtype=lengths.dtype, device=lengths.device)
    return places < lengths[:, None]
