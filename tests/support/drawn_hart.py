"""Tiny HART models with drawn weights, in memory, and texts for them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from support.drawn import drawn_vae

from nextscale.export.eager import Eager
from nextscale.export.models.hart import HART
from nextscale.plan.families.hart import hart_model, hart_plan
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.schedules import squares
from nextscale.plan.types import Diffusion, Model, Plan, Sampling, Text, Tokenizer

SCHEDULE = squares(1, 2, 3, 5)
TOKENIZER = Tokenizer(32, (1, 2), res_blocks=1, code_channels=32, vocabulary=48, stride=2)
TEXT = Text(6, 20, "prefix")
MODEL = hart_model(2, 64, heads=4, text=TEXT, diffusion=Diffusion(24, 2, 4), vocabulary=48)
VARIANTS = {
    "as inferred": MODEL,
    "l2 norm": replace(MODEL, qk_norm=True),
    "level table": replace(MODEL, level_mlp=False),
    "no context norm": replace(MODEL, text=replace(TEXT, norm=False)),
}
PRUNE = FastVAR({2: 0.4, 3: 0.6}, cache_scale=1)


def drawn_hart(model: Model = MODEL, seed: int = 0) -> HART:
    """Weights of about unit gain, norms around 1, without gradients."""
    generator, hart = torch.Generator().manual_seed(seed), HART(model, SCHEDULE)
    with torch.no_grad():
        for name, parameter in hart.named_parameters():
            gain = math.prod(parameter.shape[1:]) ** -0.5 if parameter.ndim > 1 else 0.1
            mean = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            parameter.copy_(mean + gain * torch.randn(parameter.shape, generator=generator))
        hart.head.weight.mul_(0.3)  # for many codes to be drawn: tokens of one code would tie in their scores
    return hart.eval().requires_grad_(False)


def chain(model: Model = MODEL, smooth: bool = False) -> Plan:
    """The plain chain, top-k of 20."""
    return hart_plan("drawn", model, TOKENIZER, SCHEDULE, Sampling(20, smooth=smooth))


def eager_of(plan: Plan, seed: int = 0) -> Eager:
    """Drawn models of a plan's numbers, behind its plan."""
    return Eager(plan, drawn_hart(plan.model(), seed), drawn_vae(TOKENIZER))


def subjects(*lengths: int) -> list[tuple[np.ndarray, int]]:
    """Features of texts, all 6 rows of them, of which so many count."""
    random = np.random.default_rng(5)
    return [(random.standard_normal((TEXT.tokens, TEXT.width)).astype(np.float32), length) for length in lengths]
