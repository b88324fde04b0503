"""HART's residual diffusion: what the last scale's codes cannot say, denoised for each token by a small MLP.

Source: mit-han-lab/hart; the sheet's section 3.5. Module names are the published state dict's keys below ``diffloss``.
A DDPM with learned variances, unrolled: every number of its schedule is a constant. Rows are guidance rows of images,
all of them denoised from the same sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models.contract import Derived
from nextscale.export.models.denoising import denoisings
from nextscale.export.models.layers import EPS, layer_norm
from nextscale.export.models.ops import linear
from nextscale.export.models.sampling import guided
from nextscale.plan.errors import PlanError

LATENT_SCALE = 0.6  # samples are of unit scale, code residuals of this
WAVES = 256  # numbers of a sinusoidal embedding


def normals(noise: Tensor) -> Tensor:
    """Standard normals of uniforms in (0, 1), (..., Z) float32, by Box and Muller's rule.

    The first half of the channels pairs with the second: ``r = sqrt(-2 log u[j])`` and ``a = 2 pi u[j + Z / 2]`` make
    ``r cos a`` at ``j`` and ``r sin a`` at ``j + Z / 2``, all in float32, 2 pi rounded to it.
    """
    first, second = noise.chunk(2, dim=-1)
    radius = torch.sqrt(-2 * torch.log(first))
    angle = 2 * math.pi * second
    return torch.cat((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)


class MLP(nn.Sequential):
    """Linear, SiLU, Linear (keys ``0`` and ``2``)."""

    WEIGHTS = ("0.weight", "0.bias", "2.weight", "2.bias")

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., width), in the dtype of the weights."""
        up, up_bias, down, down_bias = (self.get_parameter(name) for name in self.WEIGHTS)
        return linear(F.silu(linear(x.to(up.dtype), up, up_bias)), down, down_bias)


class NumberEmbedding(nn.Module):
    """An MLP on the sinusoids of a number, as timesteps are embedded; HART embeds levels by it too."""

    SOURCES = tuple(f"mlp.{name}" for name in MLP.WEIGHTS)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = MLP(WAVES, width)

    def forward(self, number: int) -> Tensor:
        """A number's embedding, (width,) float32. Graphs take it as a derived weight."""
        half = WAVES // 2
        order = torch.arange(half, dtype=torch.float32, device=self.mlp.get_parameter("0.weight").device)
        waves = torch.exp(-math.log(10000) * order / half)
        out: Tensor = self.mlp(torch.cat((torch.cos(number * waves), torch.sin(number * waves))))
        return out


class Modulation(nn.Sequential):
    """adaLN parameters of each token: ``Linear(SiLU(cond))`` in groups of the width (key ``adaLN_modulation.1``)."""

    def __init__(self, width: int, groups: int) -> None:
        lin = nn.Linear(width, groups * width)
        super().__init__(nn.SiLU(), lin)
        self.groups = groups

    def forward(self, cond: Tensor) -> tuple[Tensor, ...]:
        """(R, n, W) to ``groups`` of the same shape, float32."""
        weight, bias = (self.get_parameter(f"1.{name}") for name in ("weight", "bias"))
        return linear(F.silu(cond).to(weight.dtype), weight, bias).float().chunk(self.groups, dim=-1)


class ResidualBlock(nn.Module):
    """``h + gate * mlp(LN(h) * (1 + scale) + shift)``; its LayerNorm is affine and float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width, width)
        self.adaLN_modulation = Modulation(width, 3)

    def forward(self, h: Tensor, cond: Tensor) -> Tensor:
        """(R, n, W) float32 with the condition of the same shape."""
        shift, scale, gate = self.adaLN_modulation(cond)
        out: Tensor = h + gate * self.mlp(self.in_ln(h) * (1 + scale) + shift)
        return out


class FinalLayer(nn.Module):
    """``linear(LN(h) * (1 + scale) + shift)``; its LayerNorm has no weights."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = Modulation(width, 2)

    def forward(self, h: Tensor, cond: Tensor) -> Tensor:
        """(R, n, W) float32 to (R, n, outputs)."""
        shift, scale = self.adaLN_modulation(cond)
        return linear(layer_norm(h) * (1 + scale) + shift, self.linear.weight, self.linear.bias)


class Denoiser(nn.Module):
    """What is run at every step: a sample, the step's embedding and the condition to noise and variance fraction."""

    def __init__(self, channels: int, cond_width: int, width: int, depth: int, trained: Sequence[int]) -> None:
        super().__init__()
        self.trained = tuple(trained)
        self.time_embed = NumberEmbedding(width)
        self.cond_embed = nn.Linear(cond_width, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = FinalLayer(width, 2 * channels)

    def time(self, order: int) -> Tensor:
        """The embedding of the step of that order, (W,)."""
        name = f"time_embed_{order:02d}"
        if name in self._buffers:
            return self.get_buffer(name)
        embedded: Tensor = self.time_embed(self.trained[order])
        return embedded

    def fold(self) -> None:
        """Keeps the steps' embeddings as (non-persistent) buffers."""
        for order in range(len(self.trained)):
            self.register_buffer(f"time_embed_{order:02d}", self.time(order).detach(), persistent=False)

    def forward(self, sample: Tensor, order: int, cond: Tensor) -> Tensor:
        """``sample`` (R, n, Z) and the embedded condition (R, n, W), both float32, to (R, n, 2 Z)."""
        h = linear(sample, self.input_proj.weight, self.input_proj.bias)
        cond = cond + self.time(order)
        for block in self.res_blocks:
            h = block(h, cond)
        out: Tensor = self.final_layer(h, cond)
        return out


class ResidualDiffusion(nn.Module):
    """The sampler around its denoiser (key ``net``)."""

    DERIVED: ClassVar[Mapping[str, Derived]] = {
        "time_embed": Derived(
            "MLP of the sinusoids of the trained step that a denoising step stands for, from noise on",
            tuple(f"time_embed.{source}" for source in NumberEmbedding.SOURCES),
        ),
    }

    def __init__(self, channels: int, cond_width: int, width: int, depth: int, steps: int) -> None:
        super().__init__()
        if channels % 2:
            raise PlanError(f"codes of {channels} channels cannot be denoised: normals are made in pairs of channels")
        self.channels, self.steps = channels, denoisings(steps)
        self.net = Denoiser(channels, cond_width, width, depth, [step.trained for step in self.steps])

    def computing(self) -> Iterable[nn.Module]:
        """The wide matrices; the narrow ones at both ends, norms and the sampler's arithmetic stay float32."""
        wide = ("mlp", "adaLN_modulation")
        blocks = (block.get_submodule(part) for block in self.net.res_blocks for part in wide)
        return (self.net.cond_embed, *blocks, self.net.final_layer.adaLN_modulation)

    def forward(self, z: Tensor, noise: Tensor, guidance: Tensor) -> Tensor:
        """The residuals of tokens, (B, n, Z) float32.

        ``z`` (R, n, C) float32 are the conditions of all rows, ``noise`` (B, n, steps, Z) normals: the start, then one
        for every step but the last. ``guidance`` (B, G) weighs the rows' predicted noise; variances are those of the
        conditional row.
        """
        images, rows = guidance.shape
        embed = self.net.cond_embed
        cond = linear(z.to(embed.weight.dtype), embed.weight, embed.bias).float()
        x = noise[:, :, 0]
        for order, step in enumerate(self.steps):
            out = self.net(x.repeat(rows, 1, 1), order, cond)
            eps = guided(out[..., : self.channels], guidance)
            x0 = (step.x_part * x - step.eps_part * eps).clamp(-1, 1)
            x = step.x0_weight * x0 + step.x_weight * x
            if order + 1 < len(self.steps):
                fraction = (out[:images, :, self.channels :] + 1) / 2
                log_variance = fraction * step.most + (1 - fraction) * step.least
                x = x + torch.exp(0.5 * log_variance) * noise[:, :, order + 1]
        return LATENT_SCALE * x
