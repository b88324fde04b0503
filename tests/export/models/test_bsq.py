"""The bitwise tokenizer: published keys and shapes, bits that add up, patches, an encoder that no trace covers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn_infinity import (
    MODEL,
    OBLONG,
    PATCHED,
    SQUARE,
    TOKENIZER,
    drawn_bsq,
    drawn_infinity,
    infinity_chain,
    prompt,
)
from torch import Tensor
from torch.nn import functional as F

from nextscale.export.eager import Eager, Request
from nextscale.export.models.bsq import BSQVAE, BitwiseQuantizer
from nextscale.plan.families.infinity import INFINITY_PATCH_TOKENIZER, INFINITY_TOKENIZER
from nextscale.plan.types import Grid, NextInput, Tokenizer

SHAPE = tuple[int, ...]


def conv(name: str, c_out: int, c_in: int, kernel: int = 3) -> Iterator[tuple[str, SHAPE]]:
    yield f"{name}.conv.weight", (c_out, c_in, kernel, kernel)
    yield f"{name}.conv.bias", (c_out,)


def norm(name: str, channels: int) -> Iterator[tuple[str, SHAPE]]:
    yield f"{name}.norm.weight", (channels,)
    yield f"{name}.norm.bias", (channels,)


def res_block(name: str, c_in: int, c_out: int) -> Iterator[tuple[str, SHAPE]]:
    yield from norm(f"{name}.norm1", c_in)
    yield from conv(f"{name}.conv1", c_out, c_in)
    yield from norm(f"{name}.norm2", c_out)
    yield from conv(f"{name}.conv2", c_out, c_out)
    if c_in != c_out:
        yield from conv(f"{name}.nin_shortcut", c_out, c_in, 1)


def decoder(widths: list[int], d: int) -> Iterator[tuple[str, SHAPE]]:
    """The sheet's section 2.5, levels from full resolution on."""
    top = widths[-1]
    yield from conv("decoder.conv_in", top, d)
    for b in (1, 2):
        yield from res_block(f"decoder.mid.block_{b}", top, top)
    for level, width in enumerate(widths):
        c_in = widths[min(level + 1, len(widths) - 1)]
        for b in range(3):
            yield from res_block(f"decoder.up.{level}.block.{b}", width if b else c_in, width)
        if level:
            yield from conv(f"decoder.up.{level}.upsample.conv", width, width)
    yield from norm("decoder.norm_out", widths[0])
    yield from conv("decoder.conv_out", 3, widths[0])


def encoder(widths: list[int], d: int) -> Iterator[tuple[str, SHAPE]]:
    top = widths[-1]
    yield from conv("encoder.conv_in", widths[0], 3)
    for level, width in enumerate(widths):
        for b in range(2):
            yield from res_block(f"encoder.down.{level}.block.{b}", width if b else widths[max(level - 1, 0)], width)
        if level < len(widths) - 1:
            yield from conv(f"encoder.down.{level}.downsample.conv", width, width)
    for b in (1, 2):
        yield from res_block(f"encoder.mid.block_{b}", top, top)
    yield from norm("encoder.norm_out", top)
    yield from conv("encoder.conv_out", d, top)


@pytest.mark.parametrize(
    ("tokenizer", "widths", "d"),
    [
        (INFINITY_TOKENIZER, [128, 256, 512, 512, 512], 32),
        (INFINITY_PATCH_TOKENIZER, [128, 256, 512, 512], 14),
    ],
    ids=["d32", "d56 of patches"],
)
def test_the_published_keys_and_shapes(tokenizer: Tokenizer, widths: list[int], d: int) -> None:
    with torch.device("meta"):
        found = {key: tuple(t.shape) for key, t in BSQVAE(tokenizer, 13).state_dict().items()}
        without = set(BSQVAE(tokenizer, 13, encoder=False).state_dict())
    assert found == dict(decoder(widths, d)) | dict(encoder(widths, d))
    assert without == {key for key, _ in decoder(widths, d)}
    shortcuts = {key for key in without if key.endswith("nin_shortcut.conv.weight")}
    assert shortcuts == {f"decoder.up.{level}.block.0.nin_shortcut.conv.weight" for level in (0, 1)}


@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_a_picture_and_its_code_map_differ_by_the_stride(size: Grid) -> None:
    vae = drawn_bsq(replace(TOKENIZER, multipliers=(1, 2, 2, 2), stride=8), encoder=True)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    features = vae.features(images)
    assert features.shape == (2, 8, size[0] // 8, size[1] // 8)
    assert vae.decode(features).shape == images.shape


class Plain:
    """The autoencoder from the sheet's sections 1.3 and 2.5, over a state dict; no attention anywhere."""

    def __init__(self, vae: BSQVAE) -> None:
        self.state: dict[str, Tensor] = dict(vae.state_dict())

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int | str = "same") -> Tensor:
        return F.conv2d(x, self.state[f"{name}.conv.weight"], self.state[f"{name}.conv.bias"], stride, padding)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.norm.weight"], self.state[f"{name}.norm.bias"], 1e-6)

    def res(self, x: Tensor, name: str) -> Tensor:
        h = self.conv(F.silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = self.conv(F.silu(self.norm(h, f"{name}.norm2")), f"{name}.conv2")
        return h + (self.conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.conv.weight" in self.state else x)

    def features(self, x: Tensor) -> Tensor:
        """Of a tokenizer of three levels."""
        x = self.conv(x, "encoder.conv_in")
        for level in range(3):
            for b in range(2):
                x = self.res(x, f"encoder.down.{level}.block.{b}")
            if level < 2:
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", 2, 0)
        x = self.res(self.res(x, "encoder.mid.block_1"), "encoder.mid.block_2")
        return self.conv(F.silu(self.norm(x, "encoder.norm_out")), "encoder.conv_out")


def test_the_encoder_is_the_sheet_s() -> None:
    vae = drawn_bsq(replace(TOKENIZER, multipliers=(1, 2, 2), stride=4), encoder=True)
    images = torch.randn(2, 3, 20, 12, generator=torch.Generator().manual_seed(1))
    wanted = Plain(vae).features(images)
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(vae.features(images), wanted, rtol=1e-4, atol=1e-4)


def test_folding_changes_nothing() -> None:
    code_sum = torch.randn(1, 8, 4, 6, generator=torch.Generator().manual_seed(1))
    vae = drawn_bsq()
    before, keys = vae.decode(code_sum), set(vae.state_dict())
    assert torch.equal(vae.fold().decode(code_sum), before)
    assert set(vae.state_dict()) == keys
    assert set(dict(vae.named_buffers())) >= {"decoder.norm_out.norm.gain", "decoder.norm_out.norm.shift"}


def test_pictures_are_clamped_to_0_and_1() -> None:
    vae = drawn_bsq()
    code_sum = torch.randn(1, 8, 4, 6, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(vae.decode(code_sum), (vae.decoder(code_sum).clamp(-1, 1) + 1) / 2)
    vae.decoder.get_parameter("conv_out.conv.weight").mul_(100)
    saturated = vae.decode(code_sum)
    assert (float(saturated.min()), float(saturated.max())) == (0.0, 1.0)


@settings(deadline=None)
@given(
    h=st.integers(1, 5),
    w=st.integers(1, 5),
    channels=st.integers(1, 4),
    patch=st.integers(1, 3),
    images=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_patches_go_both_ways(h: int, w: int, channels: int, patch: int, images: int, seed: int) -> None:
    """Bits to codes, and codes read as a next input of their own size: the same numbers in the same places."""
    quantize = BitwiseQuantizer(channels, patch)
    bits = torch.randint(2, (images, h * w, channels * patch**2), generator=torch.Generator().manual_seed(seed))
    codes = quantize.codes(bits, (h, w))
    assert codes.shape == (images, channels, patch * h, patch * w)
    torch.testing.assert_close(codes.abs(), torch.full_like(codes, channels**-0.5))
    torch.testing.assert_close(codes.square().sum(dim=1), torch.ones(images, patch * h, patch * w))  # of unit length
    again = quantize.next_input(codes, NextInput("code_sum", (h, w), "bilinear", "bilinear"))
    torch.testing.assert_close(again, (2.0 * bits - 1) / math.sqrt(channels))
    for y, x, c in ((0, 0, 0), (patch * h - 1, patch * w - 1, channels - 1), (patch - 1, 0, channels - 1)):
        bit = bits[:, (y // patch) * w + x // patch, (c * patch + y % patch) * patch + x % patch]
        assert torch.equal(codes[:, c, y, x] > 0, bit == 1)


def test_resizes_are_torch_s_bilinear_also_where_they_shrink() -> None:
    """The sheet's 2.6: trilinear of one frame, no antialias."""
    quantize, generator = BitwiseQuantizer(2, 2), torch.Generator().manual_seed(0)
    code_sum = torch.randn(2, 2, 10, 14, generator=generator)
    small = F.interpolate(code_sum, (6, 4), mode="bilinear")
    wanted = F.pixel_unshuffle(small, 2).flatten(2).transpose(1, 2)
    rule = NextInput("code_sum", (3, 2), "bilinear", "bilinear")
    torch.testing.assert_close(quantize.next_input(code_sum, rule), wanted)
    codes = torch.randn(2, 2, 6, 4, generator=generator)
    wanted = F.interpolate(codes, (10, 14), mode="bilinear")
    torch.testing.assert_close(quantize.contribution(codes, (10, 14), "bilinear", None), wanted)
    assert torch.equal(quantize.contribution(code_sum, (10, 14), "bilinear", None), code_sum)


def plain_encode(vae: BSQVAE, features: Tensor, schedule: tuple[Grid, ...]) -> tuple[list[Tensor], Tensor]:
    """Residual quantisation by torch's own resizes; the last scale is not resized."""
    sizes, rest, total, signs = vae.sizes, features, torch.zeros_like(features), []
    for grid in schedule:
        latents = (grid[0] * sizes.patch, grid[1] * sizes.patch)
        signs.append(F.adaptive_avg_pool2d(rest, latents).sign())
        codes = signs[-1] / sizes.code_channels**0.5
        added = F.interpolate(codes, features.shape[2:], mode="bilinear")
        rest, total = rest - added, total + added
    return signs, total


@pytest.mark.parametrize("schedule", [SQUARE, OBLONG], ids=["square", "oblong"])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, PATCHED], ids=["plain", "patches"])
def test_bits_of_a_picture_give_the_encoder_s_own_code_sum(tokenizer: Tokenizer, schedule: tuple[Grid, ...]) -> None:
    """By torch's own resizes, and by the chain when these bits are forced."""
    vae, plan = drawn_bsq(tokenizer, encoder=True), infinity_chain(schedule, tokenizer)
    images = torch.randn(2, 3, *plan.image_size, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    features = vae.features(images)
    bits, total = vae.quantize.encode(features, schedule)
    signs, wanted_total = plain_encode(vae, features, schedule)
    for one, grid, sign in zip(bits, schedule, signs, strict=True):
        assert one.shape == (2, grid[0] * grid[1], MODEL.bits)
        assert torch.equal(vae.quantize.codes(one, grid).sign(), sign)
    assert all(torch.equal(a, b) for a, b in zip(bits, vae.tokens_of(images, schedule), strict=True))
    torch.testing.assert_close(total, wanted_total, rtol=1e-4, atol=1e-5)
    assert float((features - total).square().mean()) < float(features.square().mean())
    eager = Eager(plan, drawn_infinity(schedule=schedule), vae)
    steps = list(eager.stream(Request([prompt(0, 3)] * 2, tokens=dict(enumerate(bits)))))
    torch.testing.assert_close(steps[-1].prediction.code_sum, total, rtol=1e-5, atol=1e-5)
