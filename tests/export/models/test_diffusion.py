"""HART's residual diffusion: its schedule, its noise, its sampler against one written in numpy (the sheet, 3.5)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from nextscale.export.models.denoising import denoisings, trained_steps
from nextscale.export.models.diffusion import LATENT_SCALE, NumberEmbedding, ResidualDiffusion, normals
from nextscale.plan.errors import PlanError
from nextscale.runtime.noise import DIFFUSION, step_uniforms

PUBLISHED = [0, 143, 285, 428, 571, 714, 856, 999]
Floats = NDArray[np.float64]


def test_the_published_steps() -> None:
    assert trained_steps(8) == PUBLISHED
    assert [step.trained for step in denoisings(8)] == PUBLISHED[::-1]


@given(st.integers(2, 1000))
def test_steps_are_spread_over_all_that_were_trained(steps: int) -> None:
    found = trained_steps(steps)
    assert (found[0], found[-1], len(found)) == (0, 999, steps)
    gaps = np.diff(found)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("steps", [-1, 0, 1, 1001])
def test_steps_that_cannot_be_spread(steps: int) -> None:
    with pytest.raises(PlanError, match=f"a diffusion of {steps} steps is asked for: it has from 2 to 1000"):
        denoisings(steps)


def kept_signal() -> Floats:
    """The share of the signal that is left after each trained step, by its closed form where no beta is capped."""
    t = np.arange(1, 1001) / 1000
    share: Floats = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / np.cos(0.008 / 1.008 * math.pi / 2) ** 2
    share[-1] = share[-2] * (1 - 0.999)  # the last beta is
    return share


@pytest.mark.parametrize("steps", [2, 8, 25])
def test_coefficients_go_back_from_a_noised_sample(steps: int) -> None:
    """With x = sqrt(a) x0 + sqrt(1 - a) eps: eps gives x0 back, and the mean is that of x a step before."""
    share = kept_signal()
    for step, after in zip(denoisings(steps), [*denoisings(steps)[1:], None], strict=True):
        a = share[step.trained]
        before = 1.0 if after is None else share[after.trained]
        x0, eps = 0.3, -1.2
        x = math.sqrt(a) * x0 + math.sqrt(1 - a) * eps
        assert step.x_part * x - step.eps_part * eps == pytest.approx(x0, rel=1e-6)
        assert step.x0_weight + step.x_weight * math.sqrt(a) == pytest.approx(math.sqrt(before), rel=1e-6)
        beta = 1 - a / before
        assert math.exp(step.most) == pytest.approx(beta, rel=1e-6)
        if after is not None:
            assert math.exp(step.least) == pytest.approx(beta * (1 - before) / (1 - a), rel=1e-6)
            assert step.least < step.most


def test_the_last_step_is_its_own_x0() -> None:
    last = denoisings(8)[-1]
    assert (last.trained, last.x0_weight, last.x_weight) == (0, pytest.approx(1), 0)


def test_normals_are_those_of_numpy() -> None:
    u = step_uniforms(7, range(3), 13, DIFFUSION, (50, 8, 32))
    found = normals(torch.from_numpy(u)).numpy()
    one, two = u[..., :16], u[..., 16:]
    radius = np.sqrt(np.float32(-2) * np.log(one))
    angle = np.float32(2 * math.pi) * two
    wanted = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)
    assert found.dtype == wanted.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=3e-6, atol=3e-6)


def test_normals_are_normal() -> None:
    drawn = normals(torch.from_numpy(step_uniforms(0, range(4), 13, DIFFUSION, (1000, 8, 32)))).double()
    n = drawn.numel()
    assert abs(float(drawn.mean())) < 4 / math.sqrt(n)
    for power, moment in ((2, 1), (3, 0), (4, 3), (6, 15)):
        spread = math.sqrt({2: 2, 3: 15, 4: 96, 6: 10170}[power] / n)
        assert abs(float(drawn.pow(power).mean()) - moment) < 4 * spread
    flat = drawn.reshape(-1, 32)
    off = (flat.T @ flat / len(flat)) - torch.eye(32, dtype=torch.float64)
    assert float(off.abs().max()) < 6 / math.sqrt(len(flat))
    inside = (drawn.abs() < torch.tensor([[0.5], [1.0], [2.0]])[:, None, None, None]).double().mean(dim=(1, 2, 3, 4))
    wanted = torch.tensor([math.erf(t / math.sqrt(2)) for t in (0.5, 1.0, 2.0)], dtype=torch.float64)
    torch.testing.assert_close(inside, wanted, rtol=0, atol=4 * 0.5 / math.sqrt(n))


def test_the_ends_of_the_uniforms_are_finite() -> None:
    least, most = 2.0**-24, 1 - 2.0**-24
    drawn = normals(torch.tensor([[least, least], [most, most], [least, most]]))
    assert drawn.isfinite().all()
    assert float(drawn.abs().max()) == pytest.approx(math.sqrt(48 * math.log(2)))


def drawn_diffusion(channels: int = 4) -> ResidualDiffusion:
    """Five steps of a small denoiser, whose noise is small enough for most of the samples to stay within their clip."""
    generator = torch.Generator().manual_seed(3)
    diffusion = ResidualDiffusion(channels, 10, 12, 2, 5)
    with torch.no_grad():
        for parameter in diffusion.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        for parameter in diffusion.net.final_layer.linear.parameters():
            parameter.mul_(0.2)
    return diffusion.requires_grad_(False)


def inputs(images: int = 3, n: int = 7, rows: int = 2) -> tuple[Tensor, Tensor]:
    """Conditions (R, n, 10) and normals (B, n, 5, 4)."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(rows * images, n, 10, generator=generator)
    return z, torch.randn(images, n, 5, 4, generator=generator)


GUIDANCE = torch.tensor([[1.0, 0.0], [3.0, -2.0], [5.5, -4.5]])


class InNumpy:
    """The sampler of the sheet's section 3.5 in float64, for one picture."""

    def __init__(self, diffusion: ResidualDiffusion) -> None:
        self.weights = {name: t.double().numpy() for name, t in diffusion.net.state_dict().items()}
        share = kept_signal()
        self.trained = trained_steps(len(diffusion.steps))
        self.share = share[self.trained]

    def linear(self, x: Floats, name: str) -> Floats:
        out: Floats = x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]
        return out

    def net(self, y: Floats, trained: int, z: Floats) -> Floats:
        half = np.arange(128)
        waves = trained * np.exp(-np.log(10000) * half / 128)
        time = self.linear(np.concatenate((np.cos(waves), np.sin(waves))), "time_embed.mlp.0")
        c = silu(self.linear(silu(time), "time_embed.mlp.2") + self.linear(z, "cond_embed"))
        h = self.linear(y, "input_proj")
        for block in ("res_blocks.0", "res_blocks.1"):
            shift, scale, gate = np.split(self.linear(c, f"{block}.adaLN_modulation.1"), 3, axis=-1)
            weight, bias = (self.weights[f"{block}.in_ln.{name}"] for name in ("weight", "bias"))
            inner = (normed(h) * weight + bias) * (1 + scale) + shift
            h = h + gate * self.linear(silu(self.linear(inner, f"{block}.mlp.0")), f"{block}.mlp.2")
        shift, scale = np.split(self.linear(c, "final_layer.adaLN_modulation.1"), 2, axis=-1)
        return self.linear(normed(h) * (1 + scale) + shift, "final_layer.linear")

    def sample(self, z: Floats, noise: Floats, t: float) -> Floats:
        """``z`` (2, n, C), ``noise`` (n, steps, Z): the residual (n, Z) under guidance ``t``."""
        y = noise[:, 0]
        for k in reversed(range(len(self.trained))):
            a, before = self.share[k], self.share[k - 1] if k else 1.0
            beta = 1 - a / before
            first, second = (self.net(y, self.trained[k], row) for row in z)
            eps = (1 + t) * first[:, :4] - t * second[:, :4]
            x0 = np.clip(y / np.sqrt(a) - np.sqrt(1 / a - 1) * eps, -1, 1)
            mean = (beta * np.sqrt(before) * x0 + (1 - before) * np.sqrt(1 - beta) * y) / (1 - a)
            if k:
                fraction = (first[:, 4:] + 1) / 2
                log = fraction * np.log(beta) + (1 - fraction) * np.log(beta * (1 - before) / (1 - a))
                mean = mean + np.exp(log / 2) * noise[:, len(self.trained) - k]
            y = mean
        return 0.6 * y


def silu(x: Floats) -> Floats:
    return x / (1 + np.exp(-x))


def normed(x: Floats) -> Floats:
    out: Floats = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return out


# The module computes in float32, through five steps under guidance of 5.5: 2.4e-5 off on one machine, a third of it by
# rounding angles of up to 999, and exp and cos differ by machine. A coefficient that is wrong by a thousandth shows as
# 1e-3 and more.
FLOAT32_SAMPLE = 1e-4


def test_the_sampler_is_the_sheets() -> None:
    diffusion, (z, noise) = drawn_diffusion(), inputs()
    found = diffusion(z, noise, GUIDANCE)
    by_hand = InNumpy(diffusion)
    for i, t in enumerate((0.0, 2.0, 4.5)):
        wanted = by_hand.sample(z[i::3].double().numpy(), noise[i].double().numpy(), t)
        np.testing.assert_allclose(found[i], wanted, rtol=0, atol=FLOAT32_SAMPLE)
    assert float(found.abs().max()) <= LATENT_SCALE * (1 + 1e-6)
    assert float((found.abs() < LATENT_SCALE - 0.01).float().mean()) > 0.5


def test_guidance_reaches_noise_and_not_variance() -> None:
    """A row of weight 0 leaves no trace, though its variances differ."""
    diffusion, (z, noise) = drawn_diffusion(), inputs()
    other = z.clone()
    other[3:] += 1
    alone, free = torch.tensor([[1.0, 0.0]] * 3), diffusion(z, noise, GUIDANCE)
    assert torch.equal(diffusion(z, noise, alone), diffusion(other, noise, alone))
    assert not torch.allclose(free[1:], diffusion(other, noise, GUIDANCE)[1:], atol=1e-2)
    single = diffusion(z[:3], noise, torch.ones(3, 1))
    torch.testing.assert_close(single, diffusion(z, noise, alone))


def test_tokens_and_pictures_are_denoised_by_themselves() -> None:
    diffusion, (z, noise) = drawn_diffusion(), inputs()
    together = diffusion(z, noise, GUIDANCE)
    picture = diffusion(z[1::3], noise[1:2], GUIDANCE[1:2])
    torch.testing.assert_close(picture[0], together[1], rtol=1e-4, atol=1e-5)
    token = diffusion(z[:, 2:3], noise[:, 2:3], GUIDANCE)
    torch.testing.assert_close(token[:, 0], together[:, 2], rtol=1e-4, atol=1e-5)


def test_every_noise_counts() -> None:
    diffusion, (z, noise) = drawn_diffusion(), inputs()
    before = diffusion(z, noise, GUIDANCE)
    for k in range(noise.shape[2]):
        changed = noise.clone()
        changed[:, :, k] += 0.5
        assert not torch.allclose(before, diffusion(z, changed, GUIDANCE), atol=1e-3), k


def test_folding_keeps_the_embeddings_of_steps() -> None:
    diffusion, (z, noise) = drawn_diffusion(), inputs()
    before, keys = diffusion(z, noise, GUIDANCE), set(diffusion.state_dict())
    diffusion.net.fold()
    assert set(diffusion.state_dict()) == keys
    for parameter in diffusion.net.time_embed.parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(before, diffusion(z, noise, GUIDANCE))
    assert {name for name, _ in diffusion.net.named_buffers()} == {f"time_embed_{k:02d}" for k in range(5)}


def test_numbers_are_embedded_by_cosines_then_sines() -> None:
    embedding = NumberEmbedding(6)
    weight = torch.zeros(6, 256)
    weight[0, 0] = weight[1, 128] = weight[2, 127] = weight[3, 255] = 1
    with torch.no_grad():
        for name, value in (("0.weight", weight), ("2.weight", torch.eye(6))):
            embedding.mlp.get_parameter(name).copy_(value)
        for name in ("0.bias", "2.bias"):
            embedding.mlp.get_parameter(name).zero_()
    slow = 3 * 10000 ** (-127 / 128)
    waves = torch.tensor([math.cos(3), math.sin(3), math.cos(slow), math.sin(slow), 0, 0])
    torch.testing.assert_close(embedding(3), torch.nn.functional.silu(waves))


def test_codes_of_an_odd_width_are_refused() -> None:
    with pytest.raises(PlanError, match="codes of 5 channels cannot be denoised"):
        drawn_diffusion(channels=5)
