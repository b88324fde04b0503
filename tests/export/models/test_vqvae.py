"""The tokenizer: published keys and shapes, an encoder that no golden trace covers, and codes that add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.drawn import MODEL, OBLONG, SQUARE, TOKENIZER, drawn_vae, drawn_var, full_plan
from torch import Tensor, nn
from torch.nn import functional as F

from nextscale.export.eager import Eager, Request
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.recipes import VAR_TOKENIZER
from nextscale.plan.schedules import phi_index
from nextscale.plan.types import Grid

SHAPE = tuple[int, ...]
STRIDE_16 = replace(TOKENIZER, multipliers=(1, 1, 2, 2, 4), res_blocks=3, stride=16)


def conv(name: str, c_out: int, c_in: int, kernel: int = 3) -> Iterator[tuple[str, SHAPE]]:
    yield f"{name}.weight", (c_out, c_in, kernel, kernel)
    yield f"{name}.bias", (c_out,)


def norm(name: str, channels: int) -> Iterator[tuple[str, SHAPE]]:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def res_block(name: str, c_in: int, c_out: int) -> Iterator[tuple[str, SHAPE]]:
    yield from norm(f"{name}.norm1", c_in)
    yield from conv(f"{name}.conv1", c_out, c_in)
    yield from norm(f"{name}.norm2", c_out)
    yield from conv(f"{name}.conv2", c_out, c_out)
    if c_in != c_out:
        yield from conv(f"{name}.nin_shortcut", c_out, c_in, 1)


def attention(name: str, channels: int) -> Iterator[tuple[str, SHAPE]]:
    yield from norm(f"{name}.norm", channels)
    yield from conv(f"{name}.qkv", 3 * channels, channels, 1)
    yield from conv(f"{name}.proj_out", channels, channels, 1)


def middle(name: str, channels: int) -> Iterator[tuple[str, SHAPE]]:
    yield from res_block(f"{name}.block_1", channels, channels)
    yield from attention(f"{name}.attn_1", channels)
    yield from res_block(f"{name}.block_2", channels, channels)


def published() -> Iterator[tuple[str, SHAPE]]:
    """The VAE table of the sheet's section 1.4, for ch = 160."""
    yield from conv("encoder.conv_in", 160, 3)
    for level, (c_in, c) in enumerate(((160, 160), (160, 160), (160, 320), (320, 320), (320, 640))):
        for b in range(2):
            yield from res_block(f"encoder.down.{level}.block.{b}", c if b else c_in, c)
            if level == 4:
                yield from attention(f"encoder.down.4.attn.{b}", 640)
        if level < 4:
            yield from conv(f"encoder.down.{level}.downsample.conv", c, c)
    yield from middle("encoder.mid", 640)
    yield from norm("encoder.norm_out", 640)
    yield from conv("encoder.conv_out", 32, 640)
    yield from conv("decoder.conv_in", 640, 32)
    yield from middle("decoder.mid", 640)
    for level, (c_in, c) in enumerate(((160, 160), (320, 160), (320, 320), (640, 320), (640, 640))):
        for b in range(3):
            yield from res_block(f"decoder.up.{level}.block.{b}", c if b else c_in, c)
            if level == 4:
                yield from attention(f"decoder.up.4.attn.{b}", 640)
        if level > 0:
            yield from conv(f"decoder.up.{level}.upsample.conv", c, c)
    yield from norm("decoder.norm_out", 160)
    yield from conv("decoder.conv_out", 3, 160)
    yield "quantize.ema_vocab_hit_SV", (10, 4096)
    for j in range(4):
        yield from conv(f"quantize.quant_resi.qresi_ls.{j}", 32, 32)
    yield "quantize.embedding.weight", (4096, 32)
    yield from conv("quant_conv", 32, 32)
    yield from conv("post_quant_conv", 32, 32)


def test_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        vae = VQVAE(VAR_TOKENIZER, 10)
    assert {key: tuple(t.shape) for key, t in vae.state_dict().items()} == dict(published())


def test_without_its_encoder_it_lacks_the_encoder_s_keys_only() -> None:
    with torch.device("meta"):
        vae = VQVAE(VAR_TOKENIZER, 10, encoder=False)
    assert set(vae.state_dict()) == {k for k, _ in published() if not k.startswith(("encoder.", "quant_conv."))}


@pytest.mark.parametrize("size", [(32, 32), (48, 16)])
def test_a_picture_and_its_code_map_differ_by_the_stride(size: Grid) -> None:
    vae = drawn_vae(STRIDE_16, encoder=True)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    features = vae.features(images)
    assert features.shape == (2, 32, size[0] // 16, size[1] // 16)
    assert vae.decode(features).shape == images.shape


class PlainEncoder:
    """The encoder from the sheet's section 1.3, over a state dict."""

    def __init__(self, vae: VQVAE) -> None:
        self.state: dict[str, Tensor] = dict(vae.state_dict())

    def conv(self, x: Tensor, name: str, stride: int = 1, padding: int | str = "same") -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], stride, padding)

    def norm(self, x: Tensor, name: str) -> Tensor:
        """32 groups, eps 1e-6, affine."""
        groups = x.unflatten(1, (32, -1))
        centred = groups - groups.mean(dim=(2, 3, 4), keepdim=True)
        unit: Tensor = (centred / (centred.square().mean(dim=(2, 3, 4), keepdim=True) + 1e-6).sqrt()).flatten(1, 2)
        return unit * self.state[f"{name}.weight"][:, None, None] + self.state[f"{name}.bias"][:, None, None]

    def res(self, x: Tensor, name: str) -> Tensor:
        h = self.conv(F.silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = self.conv(F.silu(self.norm(h, f"{name}.norm2")), f"{name}.conv2")
        return h + (self.conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.state else x)

    def attn(self, x: Tensor, name: str) -> Tensor:
        q, k, v = self.conv(self.norm(x, f"{name}.norm"), f"{name}.qkv").flatten(2).chunk(3, dim=1)
        weights = torch.einsum("bcq,bck->bqk", q, k).mul(x.shape[1] ** -0.5).softmax(dim=-1)
        return x + self.conv(torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape), f"{name}.proj_out")

    def features(self, x: Tensor, levels: int) -> Tensor:
        x = self.conv(x, "encoder.conv_in")
        for level in range(levels):
            for b in range(2):
                x = self.res(x, f"encoder.down.{level}.block.{b}")
                if level == levels - 1:
                    x = self.attn(x, f"encoder.down.{level}.attn.{b}")
            if level < levels - 1:
                padded = F.pad(x, (0, 1, 0, 1))
                x = self.conv(padded, f"encoder.down.{level}.downsample.conv", stride=2, padding=0)
        x = self.res(x, "encoder.mid.block_1")
        x = self.res(self.attn(x, "encoder.mid.attn_1"), "encoder.mid.block_2")
        out = self.conv(F.silu(self.norm(x, "encoder.norm_out")), "encoder.conv_out")
        return self.conv(out, "quant_conv")


def test_the_encoder_is_the_sheet_s() -> None:
    vae = drawn_vae(replace(TOKENIZER, multipliers=(1, 2, 2), stride=4), encoder=True)
    images = torch.randn(2, 3, 20, 12, generator=torch.Generator().manual_seed(1))
    wanted = PlainEncoder(vae).features(images, levels=3)
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(vae.features(images), wanted, rtol=1e-4, atol=1e-4)


def plain_encode(vae: VQVAE, features: Tensor, schedule: tuple[Grid, ...]) -> tuple[list[Tensor], Tensor]:
    """Residual quantisation by torch's own resizes; the last scale is not resized."""
    rest, total, tokens = features, torch.zeros_like(features), []
    for scale, grid in enumerate(schedule):
        small = rest if grid == schedule[-1] else F.adaptive_avg_pool2d(rest, grid)
        vectors = small.flatten(2).transpose(1, 2)
        tokens.append(torch.cdist(vectors.double(), vae.quantize.embedding.weight.double()).argmin(dim=-1))
        codes = vae.quantize.embedding(tokens[-1]).transpose(1, 2).unflatten(2, grid)
        large = codes if grid == schedule[-1] else F.interpolate(codes, schedule[-1], mode="bicubic")
        phi = vae.quantize.quant_resi.qresi_ls[phi_index(scale, len(schedule))]
        added = 0.5 * large + 0.5 * phi(large)
        rest, total = rest - added, total + added
    return tokens, total


@pytest.mark.parametrize("schedule", [SQUARE, OBLONG], ids=["square", "oblong"])
def test_tokens_of_a_picture_give_the_encoder_s_own_code_sum(schedule: tuple[Grid, ...]) -> None:
    """By torch's own resizes, and by the chain when these tokens are forced."""
    vae = drawn_vae(encoder=True)
    h, w = schedule[-1]
    images = torch.randn(2, 3, 2 * h, 2 * w, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    features = vae.features(images)
    tokens, total = vae.quantize.encode(features, schedule)
    wanted_tokens, wanted_total = plain_encode(vae, features, schedule)
    assert all(torch.equal(a, b) for a, b in zip(tokens, wanted_tokens, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tokens, vae.tokens_of(images, schedule), strict=True))
    assert len(set(torch.cat(tokens, dim=1).flatten().tolist())) > 10
    torch.testing.assert_close(total, wanted_total, rtol=1e-4, atol=1e-5)
    eager = Eager(full_plan(schedule=schedule), drawn_var(MODEL, schedule), vae)
    steps = list(eager.stream(Request([0, 1], tokens=dict(enumerate(tokens)))))
    torch.testing.assert_close(steps[-1].prediction.code_sum, total, rtol=1e-5, atol=1e-5)


def test_codes_of_the_codebook_are_their_own_nearest() -> None:
    quantize = drawn_vae().quantize
    assert torch.equal(quantize.nearest(quantize.embedding.weight), torch.arange(48))


def test_codes_are_laid_out_in_raster_order() -> None:
    quantize = drawn_vae().quantize
    codes = quantize.codes(torch.arange(6)[None], (2, 3))
    assert codes.shape == (1, 32, 2, 3)
    assert torch.equal(codes[0, :, 1, 2], quantize.embedding.weight[5])
    assert torch.equal(codes[0, :, 0, 1], quantize.embedding.weight[1])


def test_phi_is_half_a_convolution() -> None:
    quantize = drawn_vae().quantize
    h = torch.randn(1, 32, 4, 3, generator=torch.Generator().manual_seed(3))
    for j, own in enumerate(quantize.quant_resi.qresi_ls):
        assert isinstance(own, nn.Conv2d)
        torch.testing.assert_close(quantize.quant_resi(h, j), (h + F.conv2d(h, own.weight, own.bias, padding=1)) / 2)
    torch.testing.assert_close(quantize.contribution(h, (4, 3), "bicubic", None), h)


def test_pictures_are_clamped_to_0_and_1() -> None:
    vae = drawn_vae()
    code_sum = torch.randn(1, 32, 6, 4, generator=torch.Generator().manual_seed(4))
    pixels = vae.decode(code_sum)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(pixels, (vae.decoder(vae.post_quant_conv(code_sum)).clamp(-1, 1) + 1) / 2)
    vae.decoder.conv_out.weight *= 100
    saturated = vae.decode(code_sum)
    assert (float(saturated.min()), float(saturated.max())) == (0.0, 1.0)
    assert (saturated == 0).any(dim=1).float().mean() > 0.3
