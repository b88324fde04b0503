"""Encoder and decoder of a convolutional tokenizer, as VAR, HART and Infinity have them.

Source: FoundationVision/VAR; the sheet's sections 1.3 and 2.5. Module names are the published state dicts' keys; where
a checkpoint wraps its convolutions and norms, ``Parts`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models.contract import Derived
from nextscale.export.models.ops import group_norm
from nextscale.plan.types import Tokenizer


class GroupNorm(nn.GroupNorm):
    """The one normalisation: float32, eps 1e-6, affine (published: 32 groups).

    ``fold`` makes the derived tensors that graphs take: ``gain`` and ``shift`` (C, 1, 1), as maps need them.
    """

    DERIVED: ClassVar[Mapping[str, Derived]] = {
        "gain": Derived("norm's weight as (C, 1, 1)", ("weight",)),
        "shift": Derived("norm's bias as (C, 1, 1)", ("bias",)),
    }

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def fold(self) -> None:
        """Keeps the derived tensors as (non-persistent) buffers."""
        self.register_buffer("gain", self.weight.detach().reshape(-1, 1, 1), persistent=False)
        self.register_buffer("shift", self.bias.detach().reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) of any dtype to float32."""
        names = ("gain", "shift") if torch.compiler.is_exporting() else ("weight", "bias")
        gain, shift = (getattr(self, name) for name in names)
        return group_norm(x.float(), self.num_groups, gain, shift, self.eps)


class Parts(NamedTuple):
    """What a tokenizer is built of, under its checkpoint's names: its sizes, and how a convolution and a norm are made.

    ``conv`` takes what ``nn.Conv2d`` takes, ``norm`` what :class:`GroupNorm` takes.
    """

    sizes: Tokenizer
    conv: Callable[..., nn.Module] = nn.Conv2d
    norm: Callable[[int, int], nn.Module] = GroupNorm

    def norm_of(self, channels: int) -> nn.Module:
        """A norm with the tokenizer's number of groups."""
        return self.norm(channels, self.sizes.norm_groups)


def convolved(conv: nn.Module, x: Tensor) -> Tensor:
    """``conv(x)`` in the dtype of its weights."""
    out: Tensor = conv(x.to(next(conv.parameters()).dtype))
    return out


class ResnetBlock(nn.Module):
    """``shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))``; 1x1 shortcut only where channels change."""

    def __init__(self, c_in: int, c_out: int, parts: Parts) -> None:
        super().__init__()
        self.norm1, self.conv1 = parts.norm_of(c_in), parts.conv(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = parts.norm_of(c_out), parts.conv(c_out, c_out, 3, padding=1)
        self.nin_shortcut = parts.conv(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) to (B, c_out, h, w)."""
        h = convolved(self.conv1, F.silu(self.norm1(x)))
        h = convolved(self.conv2, F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head attention over all positions, 1x1 convolutions, residual."""

    def __init__(self, channels: int, parts: Parts) -> None:
        super().__init__()
        self.norm = parts.norm_of(channels)
        self.qkv = parts.conv(channels, 3 * channels, 1)
        self.proj_out = parts.conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        b, c, h, w = x.shape
        qkv = convolved(self.qkv, self.norm(x)).reshape(b, 3, c, h * w)
        q, k, v = qkv.unbind(1)  # (B, c, hw) each
        weights = torch.softmax((q.transpose(1, 2) @ k).float() * c**-0.5, dim=-1).to(v.dtype)  # (B, hw queries, hw)
        out: Tensor = self.proj_out((v @ weights.transpose(1, 2)).reshape(b, c, h, w))
        return x + out


class Level(nn.Module):
    """The blocks of one resolution, and the way to the next; ``attn`` is empty but at the lowest one."""

    def __init__(self, c_in: int, c_out: int, blocks: int, parts: Parts, lowest: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(c_in if b == 0 else c_out, c_out, parts) for b in range(blocks))
        attentions = blocks if lowest and parts.sizes.attention else 0
        self.attn = nn.ModuleList(AttnBlock(c_out, parts) for _ in range(attentions))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, h, w) to (B, c_out, h, w)."""
        for b, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[b](x)
        return x


class Downsample(nn.Module):
    """Stride 2 after padding right and bottom by one zero."""

    def __init__(self, channels: int, parts: Parts) -> None:
        super().__init__()
        self.conv = parts.conv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w), even sides, to (B, C, h / 2, w / 2)."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Nearest times two, then a 3x3 convolution."""

    def __init__(self, channels: int, parts: Parts) -> None:
        super().__init__()
        self.conv = parts.conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, 2h, 2w)."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def middle(channels: int, parts: Parts) -> nn.ModuleDict:
    """Residual block, attention where the tokenizer has it, residual block at the lowest resolution."""
    blocks: dict[str, nn.Module] = {"block_1": ResnetBlock(channels, channels, parts)}
    if parts.sizes.attention:
        blocks["attn_1"] = AttnBlock(channels, parts)
    return nn.ModuleDict({**blocks, "block_2": ResnetBlock(channels, channels, parts)})


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to features (B, Z, H / stride, W / stride)."""

    def __init__(self, parts: Parts, blocks: int) -> None:
        super().__init__()
        sizes = parts.sizes
        widths = [sizes.channels * m for m in sizes.multipliers]
        self.conv_in = parts.conv(3, sizes.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            level = Level(sizes.channels if i == 0 else widths[i - 1], width, blocks, parts, lowest)
            if not lowest:
                level.downsample = Downsample(width, parts)
            self.down.append(level)
        self.mid = middle(widths[-1], parts)
        self.norm_out = parts.norm_of(widths[-1])
        self.conv_out = parts.conv(widths[-1], sizes.code_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to features (B, Z, H / stride, W / stride)."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if "downsample" in level._modules:
                x = level.get_submodule("downsample")(x)
        for block in self.mid.values():
            x = block(x)
        return convolved(self.conv_out, F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Code maps (B, Z, h, w) to pictures (B, 3, h * stride, w * stride), unclamped; levels run from low to high."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        sizes = parts.sizes
        widths = [sizes.channels * m for m in sizes.multipliers]
        self.conv_in = parts.conv(sizes.code_channels, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], parts)
        self.up = nn.ModuleList()  # index = level, 0 is full resolution
        for i, width in enumerate(widths):
            lowest = i == len(widths) - 1
            level = Level(widths[-1] if lowest else widths[i + 1], width, sizes.res_blocks, parts, lowest)
            if i > 0:
                level.upsample = Upsample(width, parts)
            self.up.append(level)
        self.norm_out = parts.norm_of(widths[0])
        self.conv_out = parts.conv(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Code maps (B, Z, h, w) to pixels (B, 3, h * stride, w * stride), unclamped."""
        x = convolved(self.conv_in, x)
        for block in self.mid.values():
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
            if "upsample" in level._modules:
                x = level.get_submodule("upsample")(x)
        return convolved(self.conv_out, F.silu(self.norm_out(x)))


def fold_norms(module: nn.Module) -> None:
    """Makes the derived tensors of every norm in it."""
    for part in module.modules():
        if isinstance(part, GroupNorm):
            part.fold()


def as_pixels(decoded: Tensor) -> Tensor:
    """What a decoder leaves, around [-1, 1], as float32 in [0, 1]."""
    return (decoded.float().clamp(-1, 1) + 1) / 2
