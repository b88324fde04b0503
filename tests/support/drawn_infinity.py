"""Tiny Infinity models with drawn weights, in memory: stride 2, and with patches of two by two latents."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nextscale.export.eager import Eager
from nextscale.export.models.bsq import BSQVAE
from nextscale.export.models.infinity import Infinity
from nextscale.plan.families.infinity import INFINITY_SAMPLING, infinity_model, infinity_plan
from nextscale.plan.schedules import squares
from nextscale.plan.types import Grid, Model, Plan, Text, Tokenizer

TEXT = Text(tokens=6, width=20)
MODEL = infinity_model(4, 64, heads=4, chunks=2, bits=8, text=TEXT, ffn_width=128)
TOKENIZER = Tokenizer(
    32, (1, 2), res_blocks=1, code_channels=8, vocabulary=2, stride=2, phi=0, codebook=False, attention=False
)
PATCHED = replace(TOKENIZER, code_channels=2, patch=2)  # a token of 2 * 2 * 2 bits
SQUARE: tuple[Grid, ...] = squares(1, 2, 3, 5)
OBLONG: tuple[Grid, ...] = ((1, 1), (1, 2), (3, 2), (4, 7))


def fill(module: nn.Module, seed: int) -> None:
    """Weights of about unit gain, biases around 0, norms around 1; a head that tells bits apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            gain = math.prod(parameter.shape[1:]) ** -0.5 if parameter.ndim > 1 else 0.1
            gain *= 3 if name == "head.weight" else 10 if name == "word_embed.weight" else 1
            mean = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(mean + gain * torch.randn(parameter.shape, generator=generator))


def drawn_infinity(model: Model = MODEL, schedule: tuple[Grid, ...] = SQUARE, seed: int = 0) -> Infinity:
    """A transformer without gradients, in evaluation mode."""
    var = Infinity(model, schedule)
    fill(var, seed)
    return var.eval().requires_grad_(False)


def drawn_bsq(tokenizer: Tokenizer = TOKENIZER, encoder: bool = False, seed: int = 0) -> BSQVAE:
    """A tokenizer without gradients, in evaluation mode."""
    vae = BSQVAE(tokenizer, 4, encoder=encoder)
    fill(vae, seed)
    return vae.eval().requires_grad_(False)


def infinity_chain(schedule: tuple[Grid, ...] = SQUARE, tokenizer: Tokenizer = TOKENIZER) -> Plan:
    """The plain chain."""
    return infinity_plan("drawn", MODEL, tokenizer, schedule, INFINITY_SAMPLING)


def eager_of(plan: Plan, seed: int = 0) -> Eager:
    """Drawn models of a plan's numbers, behind its plan."""
    return Eager(plan, drawn_infinity(plan.model(), plan.schedule, seed), drawn_bsq(plan.tokenizer, seed=seed))


def prompt(seed: int, length: int) -> tuple[NDArray[np.float32], int]:
    """Features of a prompt and how many there are; what stands behind them is huge."""
    rows = np.random.default_rng(seed).standard_normal((TEXT.tokens, TEXT.width), dtype=np.float32)
    rows[length:] = 1e6
    return rows, length
