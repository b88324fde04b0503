"""HART's rotary positions: a text's as Llama has them, a grid's behind them, with axes that mix (the sheet, 3.3).

Angles are computed in float32 in upstream's order: a token's place first, then times a frequency.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.export.models.contract import Rotation
from nextscale.plan.types import Grid

BASE = 10000


def frequencies(head_dim: int, stride: int, device: torch.device) -> Tensor:
    """``10000^(-stride * j / hd)`` for ``j < hd / stride``, float32: radians a position. 2 for texts, 4 for grids."""
    return 1 / BASE ** (torch.arange(0, head_dim, stride, device=device).float() / head_dim)


def text_rotation(tokens: int, position: Tensor, frequency: Tensor) -> Rotation:
    """Cosines and sines (R, n, 1, hd) of a text's tokens; those behind its last ``position`` (R,) stand there too."""
    place = torch.arange(tokens, dtype=torch.float32, device=position.device)
    angle = torch.minimum(place, position[:, None])[..., None] * frequency  # (R, n, hd / 2)
    return _tables(angle[:, :, None])


def grid_rotation(grid: Grid, of: Grid, position: Tensor, frequency: Tensor) -> Rotation:
    """Cosines and sines (R, n, 1, hd) of a grid's tokens, whose places are those in the grid ``of``.

    A token has two places, ``y / h * Sh`` and ``x / w * Sw`` after the text's last ``position`` (R,), each with its own
    hd / 4 frequencies, twice over; y before x. As :func:`turn` pairs halves, a pair of elements meets the cosine of y
    and that of x. That is no rotation, and it is what upstream was trained with.
    """
    place = places(grid, of, position.device) + position[:, None, None]  # (R, n, 2)
    return _tables(place[..., None] * frequency)


def places(grid: Grid, of: Grid, device: torch.device) -> Tensor:
    """Where a grid's tokens stand in the grid ``of``: (n, 2) float32, y and x, raster order."""
    sides = zip(grid, of, strict=True)
    axes = [torch.arange(n, dtype=torch.float32, device=device) / n * full for n, full in sides]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 2)


def turn(q: Tensor, rotation: Rotation) -> Tensor:
    """(R, m, H, hd) by cosines and sines (R, m, 1, hd), float32: element i goes with element i + hd / 2, as in Llama.

    Other orders of the axes do too, where cosines and sines broadcast to them.
    """
    q = q.float()
    first, second = q.chunk(2, dim=-1)
    return q * rotation.cos + torch.cat((-second, first), dim=-1) * rotation.sin


def _tables(angle: Tensor) -> Rotation:
    """Angles (R, n, axes, d) to cosines and sines, those of each axis twice: (R, n, 1, axes * 2d)."""
    doubled = (torch.cat((t, t), dim=-1).flatten(2) for t in (torch.cos(angle), torch.sin(angle)))
    return Rotation(*(table.unsqueeze(2) for table in doubled))
