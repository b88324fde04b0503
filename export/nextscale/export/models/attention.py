"""Self-attention over a tape, as VAR, Infinity and HART have it: they differ in the key of qkv and in how q, k turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from nextscale.export.models.contract import Derived, Past, Rotation
from nextscale.export.models.layers import unit
from nextscale.export.models.ops import attention, linear
from nextscale.plan.types import Model

MAX_SCALE_MUL = math.log(100)  # clamped in log space, before exp

Turn = Callable[[Tensor, Rotation], Tensor]  # (R, m, H, hd) by cosines and sines


class SelfAttention(nn.Module):
    """Fused qkv, optional l2 norm of q and k with a learned scale per head, optional rotation, projection.

    ``qkv`` is the joint matrix's key, ``turn`` how q and k are rotated where the model has rotary positions.
    ``fold`` makes the derived tensors that graphs take as weights: ``qkv_bias`` (3C) and ``q_scale`` (1, 1, H, 1).
    """

    qkv_bias: Tensor
    q_scale: Tensor

    DERIVED: ClassVar[Mapping[str, Derived]] = {
        "qkv_bias": Derived("concat(q_bias, 0, v_bias)", ("q_bias", "v_bias")),
        "q_scale": Derived("exp(min(scale_mul_1H11, ln 100)), heads before head_dim", ("scale_mul_1H11",)),
    }

    def __init__(self, model: Model, qkv: str = "mat_qkv", turn: Turn | None = None) -> None:
        super().__init__()
        width, self.heads = model.width, model.heads
        self.qk_norm, self.head_dim = model.qk_norm, model.head_dim
        self.scale = 1.0 if model.qk_norm else 0.25 / math.sqrt(model.head_dim)
        self.qkv, self.turn = qkv, turn
        if model.qk_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, model.heads, 1, 1), math.log(4.0)))
        self.add_module(qkv, nn.Linear(width, 3 * width, bias=False))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def derived(self) -> tuple[Tensor, Tensor | None]:
        """``qkv_bias`` and ``q_scale`` from the parameters, or as they were folded."""
        if "qkv_bias" in self._buffers:
            return self.qkv_bias, self.q_scale if self.qk_norm else None
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        if not self.qk_norm:
            return bias, None
        return bias, self.scale_mul_1H11.float().clamp_max(MAX_SCALE_MUL).exp().reshape(1, 1, self.heads, 1)

    def fold(self) -> None:
        """Keeps the derived tensors as (non-persistent) buffers."""
        bias, scale = self.derived()
        self.register_buffer("qkv_bias", bias.detach(), persistent=False)
        if scale is not None:
            self.register_buffer("q_scale", scale.detach(), persistent=False)

    def forward(
        self, y: Tensor, past: Past | None, rotation: Rotation | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``y`` (R, m, C), past key and value rows (T, R, H, hd): output (R, m, C), new rows (m, R, H, hd).

        Rows of keys are rotated, so that later steps take them as they are. ``bias`` is added to the scores.
        """
        rows, m, _ = y.shape
        qkv_bias, q_scale = self.derived()
        weight = self.get_parameter(f"{self.qkv}.weight")
        parts = linear(y, weight, qkv_bias).split(self.heads * self.head_dim, dim=-1)
        q, k, v = (part.reshape(rows, m, self.heads, self.head_dim) for part in parts)
        if q_scale is not None:
            q, k = unit(q) * q_scale, unit(k)
        if self.turn is not None and rotation is not None:
            q, k = self.turn(q, rotation), self.turn(k, rotation)
        q, k = q.to(y.dtype), k.to(y.dtype)
        key, value = k.transpose(0, 1), v.transpose(0, 1)  # token-major, as tapes are
        keys, values = (key, value) if past is None else (torch.cat((past[0], key)), torch.cat((past[1], value)))
        out = attention(q, keys, values, self.scale, bias)
        return linear(out, self.proj.weight, self.proj.bias), key, value


def at(rotation: Rotation | None, index: Tensor | None) -> Rotation | None:
    """The rotation of kept tokens: those of ``index`` (R, m), all of them where it is None."""
    if rotation is None or index is None:
        return rotation
    return Rotation(*(_gathered(table, index) for table in rotation))


def _gathered(table: Tensor, index: Tensor) -> Tensor:
    """(n, 1, d) or (R, n, 1, d) at (R, m): (R, m, 1, d)."""
    if table.ndim == 3:
        return table.index_select(0, index.flatten()).reshape(*index.shape, *table.shape[1:])
    return table.gather(1, index[:, :, None, None].expand(-1, -1, 1, table.shape[-1]))
