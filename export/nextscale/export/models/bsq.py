"""Infinity's bitwise tokenizer: codes are signs of bits, and the decoder has no attention (the sheet, 2.5 and 2.6).

Source: FoundationVision/Infinity. Module names are the published state dict's keys, in which every convolution and norm
is wrapped once: ``conv_in.conv.weight``, ``norm1.norm.weight``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models.autoencoder import Decoder, Encoder, GroupNorm, Parts, as_pixels, fold_norms
from nextscale.export.models.contract import Derived, Quantizer, TokenizerModel
from nextscale.export.models.resize import Resize
from nextscale.plan.types import Grid, NextInput, Tokenizer


class Conv(nn.Module):
    """A convolution under the key ``conv``."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) to (B, c_out, h', w')."""
        out: Tensor = self.conv(x)
        return out


class Norm(nn.Module):
    """A group norm under the key ``norm``."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) of any dtype to float32."""
        out: Tensor = self.norm(x)
        return out


class BitwiseQuantizer(Quantizer):
    """Bits and their codes, ``(2 bit - 1) / sqrt(channels)``; it has no weights.

    ``channels`` are those of a latent. A token has ``channels * patch ** 2`` bits: bit ``(c * patch + y) * patch + x``
    is channel c of the latent at row y, column x of the token's patch.
    """

    def __init__(self, channels: int, patch: int = 1) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.resize = Resize()

    def codes(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Bits (B, n, bits) to their code map in latents (B, Z, patch * h, patch * w)."""
        codes = (2.0 * tokens - 1.0) / math.sqrt(self.channels)
        return self.unpatched(codes.transpose(1, 2).reshape(tokens.shape[0], -1, *grid))

    def contribution(self, codes: Tensor, code_grid: Grid, up: str, phi: int | None) -> Tensor:
        """What a scale's code map (B, Z, h, w) adds to the code sum (B, Z, Sh, Sw); a plan without phi has None."""
        assert phi is None
        added: Tensor = self.resize(codes, code_grid, up)
        return added

    def next_input(self, code_sum: Tensor, rule: NextInput) -> Tensor:
        """The next step's tokens (B, n_next, token width), raster order, from the code sum."""
        assert rule.grid is not None  # callers ask only where a step follows
        small = self.resize(code_sum, self.latents(rule.grid), rule.down)
        return self.patched(small).flatten(2).transpose(1, 2)

    def latents(self, grid: Grid) -> Grid:
        """The latents of a grid of tokens."""
        return grid[0] * self.patch, grid[1] * self.patch

    def patched(self, latents: Tensor) -> Tensor:
        """A map of latents (B, Z, patch * h, patch * w) as one of tokens, (B, Z * patch ** 2, h, w)."""
        return latents if self.patch == 1 else F.pixel_unshuffle(latents, self.patch)

    def unpatched(self, tokens: Tensor) -> Tensor:
        """A map of tokens (B, Z * patch ** 2, h, w) as one of latents, (B, Z, patch * h, patch * w)."""
        return tokens if self.patch == 1 else F.pixel_shuffle(tokens, self.patch)

    def encode(self, features: Tensor, schedule: tuple[Grid, ...]) -> tuple[list[Tensor], Tensor]:
        """Greedy residual quantisation of features (B, Z, Sh, Sw) in latents.

        Returns the bits of all scales, K x (B, h * w, bits) int32, and the code sum (B, Z, Sh, Sw). Residuals shrink by
        area, unlike the transformer's input.
        """
        rest, total = features, torch.zeros_like(features)
        bits: list[Tensor] = []
        for grid in schedule:
            small = self.patched(self.resize(rest, self.latents(grid), "area"))
            bits.append((small > 0).to(torch.int32).flatten(2).transpose(1, 2))
            added = self.contribution(self.codes(bits[-1], grid), self.latents(schedule[-1]), "bilinear", None)
            rest, total = rest - added, total + added
        return bits, total


class BSQVAE(TokenizerModel):
    """The whole tokenizer; ``encoder_blocks`` are those of a level (published: 2).

    ``scales`` is K of its schedule, of which nothing here depends.
    """

    DERIVED: ClassVar[Mapping[str, Derived]] = GroupNorm.DERIVED
    quantize: BitwiseQuantizer

    def __init__(self, tokenizer: Tokenizer, scales: int, encoder_blocks: int = 2, encoder: bool = True) -> None:
        super().__init__()
        self.sizes, parts = tokenizer, Parts(tokenizer, Conv, Norm)
        if encoder:
            self.encoder = Encoder(parts, encoder_blocks)
        self.decoder = Decoder(parts)
        self.quantize = BitwiseQuantizer(tokenizer.code_channels, tokenizer.patch)

    def fold(self) -> Self:
        """Makes every derived tensor."""
        fold_norms(self)
        return self

    def computing(self) -> Sequence[nn.Module]:
        """The decoder."""
        return (self.decoder,)

    def features(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to what the quantizer quantises, (B, Z, h, w)."""
        features: Tensor = self.encoder(images)
        return features

    def tokens_of(self, images: Tensor, schedule: tuple[Grid, ...]) -> list[Tensor]:
        """The bits of a picture, scale by scale: K tensors (B, h * w, bits) int32."""
        return self.quantize.encode(self.features(images), schedule)[0]

    def decode(self, code_sum: Tensor) -> Tensor:
        """Code sum (B, Z, h, w) float32 to pictures (B, 3, H, W) float32 in [0, 1], RGB."""
        return as_pixels(self.decoder(code_sum))
