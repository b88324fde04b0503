"""VAR's multi-scale VQVAE: the autoencoder with convolutions around its quantizer. HART's has the same keys.

Source: FoundationVision/VAR; the sheet's section 1.3. Module names are the published state dict's keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from torch import Tensor, nn

from nextscale.export.models.autoencoder import Decoder, Encoder, GroupNorm, Parts, as_pixels, convolved, fold_norms
from nextscale.export.models.contract import Derived, TokenizerModel
from nextscale.export.models.quantizer import MultiScaleQuantizer
from nextscale.plan.types import Grid, Tokenizer


class VQVAE(TokenizerModel):
    """The whole tokenizer. ``scales`` is K of its schedule; ``encoder_blocks`` are those of a level (published: 2)."""

    DERIVED: ClassVar[Mapping[str, Derived]] = GroupNorm.DERIVED
    quantize: MultiScaleQuantizer

    def __init__(self, tokenizer: Tokenizer, scales: int, encoder_blocks: int = 2, encoder: bool = True) -> None:
        super().__init__()
        self.sizes, z, parts = tokenizer, tokenizer.code_channels, Parts(tokenizer)
        if encoder:
            self.encoder = Encoder(parts, encoder_blocks)
            self.quant_conv = nn.Conv2d(z, z, 3, padding=1)
        self.decoder = Decoder(parts)
        self.quantize = MultiScaleQuantizer(tokenizer.vocabulary, z, scales, tokenizer.phi)
        self.post_quant_conv = nn.Conv2d(z, z, 3, padding=1)

    def fold(self) -> Self:
        """Makes every derived tensor."""
        fold_norms(self)
        return self

    def computing(self) -> Sequence[nn.Module]:
        """The decoder and the convolution before it; codebook and phi stay float32, as the code sum does."""
        return self.decoder, self.post_quant_conv

    def features(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to what the quantizer quantises, (B, Z, h, w)."""
        features: Tensor = self.quant_conv(self.encoder(images))
        return features

    def tokens_of(self, images: Tensor, schedule: tuple[Grid, ...]) -> list[Tensor]:
        """The tokens of a picture, scale by scale: K tensors (B, h * w) int64."""
        return self.quantize.encode(self.features(images), schedule)[0]

    def decode(self, code_sum: Tensor) -> Tensor:
        """Code sum (B, Z, h, w) float32 to pictures (B, 3, H, W) float32 in [0, 1], RGB."""
        return as_pixels(self.decoder(convolved(self.post_quant_conv, code_sum)))
