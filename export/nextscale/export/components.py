"""What is traced: the eager model's own functions, one module for each piece of graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextscale.export.models.quantizer import MultiScaleQuantizer
from nextscale.export.models.step import Draw, predict
from nextscale.export.models.var import VAR, Block
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.types import Grid, Layer, Plan, Step


class Begin(nn.Module):
    """labels (B,) int32 to start token, adaLN of every layer, head adaLN."""

    def __init__(self, var: VAR, guidance_rows: int) -> None:
        super().__init__()
        self.var, self.guidance_rows = var, guidance_rows

    def forward(self, labels: Tensor) -> tuple[Tensor, ...]:
        cond = self.var.begin(labels, self.guidance_rows)
        return (cond.sos, *cond.adaln, cond.head)


class Embed(nn.Module):
    """Start token or input map to the residual stream of all rows."""

    def __init__(self, var: VAR, step: Step) -> None:
        super().__init__()
        self.var, self.step = var, step

    def forward(self, source: Tensor) -> Tensor:
        return self.var.embed(self.step.scale, source, self.step.guidance_rows)


class BlockStep(nn.Module):
    """One layer as a step has it: x, adaLN, then past keys and values, then restore caches, those that exist."""

    def __init__(self, var: VAR, block: Block, layer: Layer, grid: Grid, cache_grids: dict[str, Grid]) -> None:
        super().__init__()
        self.block, self.resize = block, var.resize
        self.layer, self.grid, self.cache_grids = layer, grid, cache_grids

    def forward(self, x: Tensor, adaln: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        past, rest = ((rest[0], rest[1]), rest[2:]) if self.layer.past else (None, rest)
        caches = {name: (cache, grid) for (name, grid), cache in zip(self.cache_grids.items(), rest, strict=True)}
        out = self.block(x, adaln, self.layer, self.grid, self.resize, past, caches)
        rows = (out.key, out.value) if self.layer.writes else ()
        return (out.x, *rows, *out.caches.values())


class Finish(nn.Module):
    """Residual stream to logits, tokens, code sum and the next input map."""

    def __init__(self, var: VAR, quantize: MultiScaleQuantizer, step: Step, plan: Plan) -> None:
        super().__init__()
        self.var, self.quantize, self.step = var, quantize, step
        self.scales, self.final_grid = len(plan.schedule), plan.final_grid

    def forward(
        self,
        x: Tensor,
        head: Tensor,
        guidance: Tensor,
        temperature: Tensor,
        top_p: Tensor,
        noise: Tensor,
        tokens: Tensor,
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        smooth, rest = (rest[0], rest[1:]) if self.step.sampling and self.step.sampling.smooth else (None, rest)
        logits = self.var.logits(x[:, -self.step.tokens_out :], head)
        draw = Draw(guidance, temperature, top_p, noise, tokens, smooth)
        out = predict(self.quantize, self.step, self.scales, self.final_grid, logits, draw, rest[0] if rest else None)
        return (out.logits, out.tokens, out.code_sum) + (() if out.next_map is None else (out.next_map,))


class Decode(nn.Module):
    """Code sum to pictures (B, 3, H, W) float32 in [0, 1]."""

    def __init__(self, vae: VQVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, code_sum: Tensor) -> Tensor:
        return self.vae.decode(code_sum)


STAY_FLOAT32 = ("q_scale", "scale_mul_1H11", "ada_gss")


def compute_in(var: VAR, vae: VQVAE, dtype: torch.dtype) -> None:
    """Casts what computes in half precision; what must stay float32 stays.

    Half: the blocks' matrices, adaLN, the head, the decoder's convolutions. Float32: embeddings and positions (the
    residual stream is float32), q's learned scale and every norm (QK norm's 1e-12 is 0 in float16), codebook, phi and
    resizes (the code sum adds up over all scales), guidance, filters and sampling.
    """
    modules = [*var.blocks, *(m for n, m in var.named_children() if n in ("shared_ada_lin", "head_nm", "head"))]
    for module in (*modules, vae.decoder, vae.post_quant_conv):
        _cast(module, dtype)


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """As ``module.to(dtype)`` but for what stays float32, and without moving tensors that already fit."""
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            continue
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.dtype != dtype and name not in STAY_FLOAT32:
                setattr(part, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.dtype != dtype and name not in STAY_FLOAT32:
                setattr(part, name, buffer.to(dtype))
