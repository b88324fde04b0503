"""What is traced: the eager model's own functions, one module for each piece of graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nextscale.export.models.contract import Block, Rotation, TokenizerModel, Transformer
from nextscale.export.models.step import Draw, predict
from nextscale.plan.types import Grid, Layer, Plan, Step

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Begin(nn.Module):
    """What a caller gives, in the order of ``given``, to the conditions of all rows, in that of ``made``."""

    def __init__(self, var: Transformer, guidance_rows: int, given: tuple[str, ...], made: tuple[str, ...]) -> None:
        super().__init__()
        self.var, self.guidance_rows, self.given, self.made = var, guidance_rows, given, made

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        cond = self.var.begin(dict(zip(self.given, given, strict=True)), self.guidance_rows)
        return tuple(cond[name] for name in self.made)


class Embed(nn.Module):
    """Start token or input map to the residual stream of all rows, and the rotary positions where there are any."""

    def __init__(self, var: Transformer, step: Step, read: tuple[str, ...]) -> None:
        super().__init__()
        self.var, self.step, self.read = var, step, read

    def forward(self, source: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        x = self.var.embed(self.step, source, self.step.guidance_rows)
        rotation = self.var.rotation(self.step, dict(zip(self.read, conditions, strict=True)))
        return (x,) if rotation is None else (x, *rotation)


class BlockStep(nn.Module):
    """One layer as a step has it: x, its conditions, rotary positions, past keys and values, restore caches.

    Of all but x those that exist, in this order; ``read`` names the conditions.
    """

    def __init__(
        self,
        var: Transformer,
        block: Block,
        layer: Layer,
        grid: Grid,
        cache_grids: dict[str, Grid],
        read: tuple[str, ...],
        rotates: bool,
    ) -> None:
        super().__init__()
        self.block, self.resize = block, var.resize
        self.layer, self.grid, self.cache_grids = layer, grid, cache_grids
        self.read, self.rotates = read, rotates

    def forward(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        cond, rest = dict(zip(self.read, rest, strict=False)), rest[len(self.read) :]
        rotation, rest = (Rotation(rest[0], rest[1]), rest[2:]) if self.rotates else (None, rest)
        past, rest = ((rest[0], rest[1]), rest[2:]) if self.layer.past else (None, rest)
        caches = {name: (cache, grid) for (name, grid), cache in zip(self.cache_grids.items(), rest, strict=True)}
        out = self.block(x, cond, self.layer, self.grid, self.resize, past, caches, rotation)
        rows = (out.key, out.value) if self.layer.writes else ()
        return (out.x, *rows, *out.caches.values())


class Finish(nn.Module):
    """Residual stream to logits, tokens, code sum and the next input map; the noise beside sampling's, then the code
    sum, are there where the step has them."""

    def __init__(self, var: Transformer, vae: TokenizerModel, step: Step, plan: Plan) -> None:
        super().__init__()
        self.var, self.quantize, self.step, self.plan = var, vae.quantize, step, plan

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
        step = self.step
        smooth, rest = (rest[0], rest[1:]) if step.sampling and step.sampling.smooth else (None, rest)
        diffusion, rest = (rest[0], rest[1:]) if step.diffusion else (None, rest)
        draw = Draw(guidance, temperature, top_p, noise, tokens, smooth, diffusion)
        out = predict(self.plan, step, self.var, self.quantize, x, head, draw, rest[0] if rest else None)
        return (out.logits, out.tokens, out.code_sum) + (() if out.next_map is None else (out.next_map,))


class Decode(nn.Module):
    """Code sum to pictures (B, 3, H, W) float32 in [0, 1]."""

    def __init__(self, vae: TokenizerModel) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, code_sum: Tensor) -> Tensor:
        return self.vae.decode(code_sum)


def compute_in(var: Transformer, vae: TokenizerModel, dtype: torch.dtype) -> None:
    """Casts what computes in half precision; what must stay float32 stays.

    Half: what each model's ``computing`` names, the blocks' matrices above all, and the decoder's convolutions.
    Float32: embeddings and positions (the residual stream is float32), q's learned scale and every norm (QK norm's
    1e-12 is 0 in float16), codebook, phi and resizes (the code sum adds up over all scales), guidance, filters and
    sampling.
    """
    for model in (var, vae):
        for module in model.computing():
            _cast(module, dtype, model.FLOAT32)


def _cast(module: nn.Module, dtype: torch.dtype, kept: frozenset[str]) -> None:
    """As ``module.to(dtype)`` but for what stays float32, and without moving tensors that already fit."""
    for part in module.modules():
        if isinstance(part, NORMS):
            continue
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.dtype != dtype and name not in kept:
                setattr(part, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.dtype != dtype and name not in kept:
                setattr(part, name, buffer.to(dtype))
