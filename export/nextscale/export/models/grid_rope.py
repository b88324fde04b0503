"""Rotary positions of a grid's tokens, as Infinity has them: places count on a grid of their own (the sheet, 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.export.models.contract import Rotation
from nextscale.plan.types import Grid

BASE = 10000.0


def places(n: int, of: int) -> Tensor:
    """Where the ``n`` tokens of an axis stand among ``of`` of the reference grid: (n,) float32, whole, half to even."""
    return torch.round(torch.arange(n) * (of / n))


def grid_rotation(grid: Grid, reference: Grid, head_dim: int) -> Rotation:
    """Cosines and sines (n, 1, hd / 2) float32 of a grid's tokens in raster order: y's angles, then x's."""
    half = head_dim // 2
    inverse = 1.0 / BASE ** (torch.arange(0, half, 2).float() / half)  # (hd / 4,) radians a place
    y, x = (places(n, of)[:, None] * inverse for n, of in zip(grid, reference, strict=True))
    angles = torch.cat((y.repeat_interleave(grid[1], dim=0), x.repeat(grid[0], 1)), dim=1).unsqueeze(1)
    return Rotation(angles.cos(), angles.sin())


def turn_pairs(q: Tensor, rotation: Rotation) -> Tensor:
    """Rotates neighbours ``(2m, 2m + 1)`` of (R, m, H, hd) by angle m; all first ones come before all second ones then.

    That order, which is not upstream's, is the same for queries and keys, so their products are upstream's; putting
    the pairs back would cost one more pass over each.
    """
    pairs = q.unflatten(-1, (-1, 2))
    a, b = pairs[..., 0], pairs[..., 1]  # (R, m, H, hd / 2) each
    return torch.cat((a * rotation.cos - b * rotation.sin, a * rotation.sin + b * rotation.cos), dim=-1)
