"""Layers that the families share: norms, adaLN, the feed-forward. Module names are the published state dicts' keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models.ops import linear

EPS = 1e-6
NORM_EPS = 1e-12


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without affine, float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis, float32."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same shape, float32."""
        x = x.float()
        return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + self.eps) * self.weight


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """adaLN's norm, ``LN(x) * (1 + scale) + shift``: (R, n, C) with (R, 1, C) each, float32."""
    return layer_norm(x) * (1 + scale) + shift


def unit(x: Tensor) -> Tensor:
    """``x / max(||x||, 1e-12)`` over the head size, in float32: 1e-12 is 0 in float16."""
    x = x.float()
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(NORM_EPS)


class AdaLin(nn.Sequential):
    """adaLN parameters of a condition: ``Linear(SiLU(cond))`` in ``groups`` of the width (key ``ada_lin.1``)."""

    def __init__(self, width: int, groups: int) -> None:
        lin = nn.Linear(width, groups * width)
        super().__init__(nn.SiLU(), lin)
        self.groups = groups

    def forward(self, cond: Tensor) -> Tensor:
        """(R, C) to (R, groups, C) float32."""
        weight, bias = (self.get_parameter(f"1.{name}") for name in ("weight", "bias"))
        return linear(F.silu(cond).to(weight.dtype), weight, bias).float().reshape(cond.shape[0], self.groups, -1)


class HeadNorm(nn.Module):
    """adaLN before the head: scale, then shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = AdaLin(width, 2)


class FeedForward(nn.Module):
    """``fc2(gelu_tanh(fc1(y)))``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, y: Tensor) -> Tensor:
        """(R, m, C) to the same shape."""
        h = F.gelu(linear(y, self.fc1.weight, self.fc1.bias), approximate="tanh")
        return linear(h, self.fc2.weight, self.fc2.bias)
