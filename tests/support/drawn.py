"""Tiny eager models with weights drawn by the exporter's rules, in memory, for any numbers."""

from __future__ import annotations

import torch
from torch import nn

from nextscale.export.draw import VAE_RULES, VAR_RULES, Rule, draw
from nextscale.export.eager import Eager
from nextscale.export.models.var import VAR
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.chain import next_scale_plan
from nextscale.plan.recipes import var_model
from nextscale.plan.schedules import squares
from nextscale.plan.types import Grid, Model, Plan, Sampling, Tokenizer

MODEL = var_model(2, 64, heads=4, classes=5, vocabulary=48)
TOKENIZER = Tokenizer(32, (1, 2), res_blocks=1, code_channels=32, vocabulary=48, stride=2)
SQUARE: tuple[Grid, ...] = squares(1, 2, 3, 5)
OBLONG: tuple[Grid, ...] = ((1, 1), (1, 2), (3, 2), (4, 7))


def fill(module: nn.Module, prefix: str, rules: tuple[Rule, ...], seed: int) -> None:
    """Draws every parameter of ``module`` by its name."""
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(draw(seed, f"{prefix}:{key}", tuple(parameter.shape), rules))


def drawn_var(model: Model = MODEL, schedule: tuple[Grid, ...] = SQUARE, seed: int = 0) -> VAR:
    """A transformer without gradients, in evaluation mode."""
    var = VAR(model, schedule)
    fill(var, "var", VAR_RULES, seed)
    return var.eval().requires_grad_(False)


def drawn_vae(tokenizer: Tokenizer = TOKENIZER, scales: int = 4, encoder: bool = False, seed: int = 0) -> VQVAE:
    """A tokenizer without gradients, in evaluation mode."""
    vae = VQVAE(tokenizer, scales, encoder=encoder)
    fill(vae, "vae", VAE_RULES, seed)
    return vae.eval().requires_grad_(False)


def full_plan(
    model: Model = MODEL, schedule: tuple[Grid, ...] = SQUARE, tokenizer: Tokenizer = TOKENIZER, smooth: bool = False
) -> Plan:
    """The plain chain, top-k of 20."""
    return next_scale_plan("drawn", model, tokenizer, schedule, Sampling(20, smooth=smooth))


def drawn_eager(plan: Plan, seed: int = 0) -> Eager:
    """Drawn models of a plan's numbers, behind its plan."""
    vae = drawn_vae(plan.tokenizer, len(plan.schedule), seed=seed)
    return Eager(plan, drawn_var(plan.model(), plan.schedule, seed), vae)
