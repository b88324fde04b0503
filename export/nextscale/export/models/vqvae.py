"""VAR's multi-scale VQVAE: encoder, decoder and the picture side of the quantizer.

Source: FoundationVision/VAR; the sheet's section 1.3. Module names are the published state dict's keys.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models.quantizer import MultiScaleQuantizer
from nextscale.plan.types import Grid, Tokenizer


class GroupNorm(nn.GroupNorm):
    """The one normalisation of the VQVAE: float32, eps 1e-6, affine (published: 32 groups).

    ``fold`` makes the derived tensors that graphs take: ``gain`` and ``shift`` (C, 1, 1), as maps need them.
    """

    RULES: ClassVar = {"gain": "norm's weight as (C, 1, 1)", "shift": "norm's bias as (C, 1, 1)"}

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def fold(self) -> None:
        """Keeps the derived tensors as (non-persistent) buffers."""
        self.register_buffer("gain", self.weight.detach().reshape(-1, 1, 1), persistent=False)
        self.register_buffer("shift", self.bias.detach().reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) of any dtype to float32."""
        if torch.compiler.is_exporting():
            gain, shift = self.get_buffer("gain"), self.get_buffer("shift")
            return F.group_norm(x.float(), self.num_groups, eps=self.eps) * gain + shift
        return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps)


class ResnetBlock(nn.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``; 1x1 shortcut only where channels change."""

    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(c_in, groups), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = GroupNorm(c_out, groups), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) to (B, c_out, h, w)."""
        h: Tensor = self.conv1(F.silu(self.norm1(x)).to(self.conv1.weight.dtype))
        h = self.conv2(F.silu(self.norm2(h)).to(self.conv2.weight.dtype))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head attention over all positions, 1x1 convolutions, residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x).to(self.qkv.weight.dtype)).reshape(b, 3, c, h * w)
        q, k, v = qkv.unbind(1)  # (B, c, hw) each
        weights = torch.softmax((q.transpose(1, 2) @ k).float() * c**-0.5, dim=-1).to(v.dtype)  # (B, hw queries, hw)
        out: Tensor = self.proj_out((v @ weights.transpose(1, 2)).reshape(b, c, h, w))
        return x + out


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next; ``attn`` is empty but at the lowest one."""

    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(c_in if b == 0 else c_out, c_out, groups) for b in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(c_out, groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) to (B, c_out, h, w)."""
        for b, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[b](x)
        return x


class Downsample(nn.Module):
    """Stride 2 after padding right and bottom by one zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), even sides, to (B, C, h / 2, w / 2)."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Nearest times two, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, 2h, 2w)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def middle(channels: int, groups: int) -> nn.ModuleDict:
    """Residual block, attention, residual block at the lowest resolution."""
    return nn.ModuleDict(
        {
            "block_1": ResnetBlock(channels, channels, groups),
            "attn_1": AttnBlock(channels, groups),
            "block_2": ResnetBlock(channels, channels, groups),
        }
    )


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to features (B, Z, H / stride, W / stride)."""

    def __init__(self, tokenizer: Tokenizer, blocks: int) -> None:
        super().__init__()
        widths = [tokenizer.channels * m for m in tokenizer.multipliers]
        self.conv_in = nn.Conv2d(3, tokenizer.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            c_in = tokenizer.channels if i == 0 else widths[i - 1]
            level = Level(c_in, width, blocks, tokenizer.norm_groups, attention=lowest)
            if not lowest:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = middle(widths[-1], tokenizer.norm_groups)
        self.norm_out = GroupNorm(widths[-1], tokenizer.norm_groups)
        self.conv_out = nn.Conv2d(widths[-1], tokenizer.code_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to features (B, Z, H / stride, W / stride)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if "downsample" in level._modules:
                x = level.get_submodule("downsample")(x)
        for block in self.mid.values():
            x = block(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)).to(self.conv_out.weight.dtype))
        return out


class Decoder(nn.Module):
    """Code maps (B, Z, h, w) to pictures (B, 3, h * stride, w * stride), unclamped; levels run from low to high."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        widths = [tokenizer.channels * m for m in tokenizer.multipliers]
        self.conv_in = nn.Conv2d(tokenizer.code_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], tokenizer.norm_groups)
        self.up = nn.ModuleList()  # index = level, 0 is full resolution
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            c_in = widths[-1] if lowest else widths[i + 1]
            level = Level(c_in, width, tokenizer.res_blocks, tokenizer.norm_groups, attention=lowest)
            if i > 0:
                level.upsample = Upsample(width)
            self.up.append(level)
        self.norm_out = GroupNorm(widths[0], tokenizer.norm_groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Code maps (B, Z, h, w) to pixels (B, 3, h * stride, w * stride), unclamped."""
        x = self.conv_in(x.to(self.conv_in.weight.dtype))
        for block in self.mid.values():
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
            if "upsample" in level._modules:
                x = level.get_submodule("upsample")(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)).to(self.conv_out.weight.dtype))
        return out


class VQVAE(nn.Module):
    """The whole tokenizer. ``scales`` is K of its schedule; ``encoder_blocks`` are those of a level (published: 2)."""

    def __init__(self, tokenizer: Tokenizer, scales: int, encoder_blocks: int = 2, encoder: bool = True) -> None:
        super().__init__()
        z = tokenizer.code_channels
        if encoder:
            self.encoder = Encoder(tokenizer, encoder_blocks)
            self.quant_conv = nn.Conv2d(z, z, 3, padding=1)
        self.decoder = Decoder(tokenizer)
        self.quantize = MultiScaleQuantizer(tokenizer.vocabulary, z, scales, tokenizer.phi)
        self.post_quant_conv = nn.Conv2d(z, z, 3, padding=1)

    def fold(self) -> VQVAE:
        """Makes every derived tensor."""
        for module in self.modules():
            if isinstance(module, GroupNorm):
                module.fold()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to what the quantizer quantises, (B, Z, h, w)."""
        features: Tensor = self.quant_conv(self.encoder(images))
        return features

    def tokens_of(self, images: Tensor, schedule: tuple[Grid, ...]) -> list[Tensor]:
        """The tokens of a picture, scale by scale: K tensors (B, h * w) int64."""
        return self.quantize.encode(self.features(images), schedule)[0]

    def decode(self, code_sum: Tensor) -> Tensor:
        """Code sum (B, Z, h, w) float32 to pictures (B, 3, H, W) float32 in [0, 1], RGB."""
        x = self.post_quant_conv(code_sum.to(self.post_quant_conv.weight.dtype))
        pixels: Tensor = self.decoder(x)
        return (pixels.float().clamp(-1, 1) + 1) / 2
