"""The multi-scale residual quantizer: code lookup, phi, the code sum and the next input (the sheet, 1.3 and 1.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextscale.export.models.contract import Quantizer
from nextscale.export.models.resize import Resize
from nextscale.plan.schedules import phi_index
from nextscale.plan.types import Grid, NextInput


class PhiConvs(nn.Module):
    """The partially shared residual convolutions, ``phi_j(h) = h / 2 + conv_j(h) / 2`` (published: 4 of them)."""

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count))

    def forward(self, h: Tensor, index: int) -> Tensor:
        """``h`` (B, Z, Sh, Sw) float32 through convolution ``index`` of the plan's rule."""
        out: Tensor = 0.5 * h + 0.5 * self.qresi_ls[index](h)
        return out


class MultiScaleQuantizer(Quantizer):
    """Codebook (V, Z), phi (none where ``phi`` is 0) and the resizes between scales; a token is one latent."""

    ema_vocab_hit_SV: Tensor

    def __init__(self, vocabulary: int, channels: int, scales: int, phi: int = 4) -> None:
        super().__init__()
        self.scales, self.phi = scales, phi
        self.embedding = nn.Embedding(vocabulary, channels)
        if phi:
            self.quant_resi = PhiConvs(channels, phi)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(scales, vocabulary))
        self.resize = Resize()

    def codes(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens (B, n) to their code map (B, Z, h, w)."""
        return _as_map(self.embedding(tokens), grid)

    def mixture(self, weights: Tensor, grid: Grid) -> Tensor:
        """Weights over the codebook (B, n, V) to the map (B, Z, h, w) of weighted codes."""
        return _as_map(weights @ self.embedding.weight, grid)

    def contribution(self, codes: Tensor, code_grid: Grid, up: str, phi: int | None) -> Tensor:
        """What a scale's code map (B, Z, h, w) adds to the code sum (B, Z, Sh, Sw)."""
        h: Tensor = self.resize(codes, code_grid, up)
        if phi is not None:
            h = self.quant_resi(h, phi)
        return h

    def next_input(self, code_sum: Tensor, rule: NextInput) -> Tensor:
        """The next step's tokens (B, n_next, Z), raster order, from the code sum."""
        assert rule.grid is not None  # callers ask only where a step follows
        small: Tensor = self.resize(code_sum, rule.grid, rule.down)
        return small.flatten(2).transpose(1, 2)

    def encode(self, features: Tensor, schedule: tuple[Grid, ...]) -> tuple[list[Tensor], Tensor]:
        """Greedy residual quantisation: tokens of all scales, K x (B, h * w) int64, and the code sum (B, Z, Sh, Sw)."""
        rest, total = features, torch.zeros_like(features)
        tokens: list[Tensor] = []
        for scale, grid in enumerate(schedule):
            small = self.resize(rest, grid, "area").flatten(2).transpose(1, 2)  # (B, n, Z)
            tokens.append(self.nearest(small))
            phi = phi_index(scale, len(schedule), self.phi) if self.phi else None
            added = self.contribution(self.codes(tokens[-1], grid), schedule[-1], "bicubic", phi)
            rest, total = rest - added, total + added
        return tokens, total

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the codebook row at the least squared distance: (..., Z) to (...), int64."""
        book = self.embedding.weight
        return (book.square().sum(1) - 2 * z @ book.T).argmin(dim=-1)


def _as_map(codes: Tensor, grid: Grid) -> Tensor:
    """(B, n, Z) in raster order to (B, Z, h, w)."""
    return codes.transpose(1, 2).reshape(codes.shape[0], -1, *grid)
