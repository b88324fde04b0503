"""Training of the demo model's VAR on the tokenizer's features.

Teacher forcing as published (block-causal, cross-entropy, labels dropped to the null class), with two additions that
make a short training count: most steps see only the scales before the last, which hold the drawing and cost half, and
a share of the input tokens is exchanged for neighbours, with the later scales' targets computed from what is then
missing, so that the model learns to mend what sampling gets wrong (Infinity's self-correction, on a codebook).
"""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo_tokenizer import signed
from demo_training import Clock, Training
from demo_world import CLASS_NAMES
from numpy.typing import NDArray
from torch import Tensor, nn

from nextscale.export.models.resize import Resize
from nextscale.export.models.var import VAR, whole
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.schedules import phi_index
from nextscale.plan.types import Grid

Schedule = tuple[Grid, ...]
LABEL_DROP = 0.1
EXCHANGED = 0.25  # each picture has a share between 0 and this of its input tokens exchanged
NEIGHBOURS = 12  # for one of so many nearest codes
SHORT_UNTIL, SHORT_SHARE = 0.75, 0.75  # up to this progress, this share of the steps leaves the last scale out


@torch.no_grad()
def lesson(vae: VQVAE, features: Tensor, schedule: Schedule, exchanged: Tensor) -> tuple[Tensor, Tensor]:
    """Targets (B, L) and input maps (B, L - 1, Z) of a batch, a share ``exchanged`` (B,) of the input tokens replaced.

    ``features`` (B, Z, S, S); the targets of a scale are the best tokens after the (replaced) tokens before it.
    """
    book = vae.quantize
    total, targets, maps = torch.zeros_like(features), [], []
    final = (features.shape[-2], features.shape[-1])
    codes = book.embedding.weight
    for scale, grid in enumerate(schedule):
        small = book.resize(features - total, grid, "area").flatten(2).transpose(1, 2)  # (B, n, Z)
        distance = codes.square().sum(1) - 2 * small @ codes.T  # (B, n, V)
        near = distance.topk(NEIGHBOURS, largest=False).indices  # (B, n, 12), the nearest first
        targets.append(near[..., 0])
        if scale + 1 == len(schedule):
            break
        other = near.gather(2, torch.randint(NEIGHBOURS, (*near.shape[:2], 1)))[..., 0]
        given = torch.where(torch.rand(near.shape[:2]) < exchanged[:, None], other, near[..., 0])
        phi = phi_index(scale, book.scales, book.phi)  # of the whole schedule, also in a short lesson
        total = total + book.contribution(book.codes(given, grid), final, "bicubic", phi)
        maps.append(book.resize(total, schedule[scale + 1], "area").flatten(2).transpose(1, 2))
    return torch.cat(targets, 1), torch.cat(maps, 1)


def shortened(var: VAR, scales: int) -> VAR:
    """The same weights with only the first scales of the schedule."""
    short = copy.copy(var)
    short.schedule, short.lengths = var.schedule[:scales], var.lengths[:scales]
    return short


@torch.no_grad()
def initialise(var: VAR) -> None:
    """Small logits, open gates, and residual branches scaled to the depth."""
    spread_of = {"class_emb.weight": 0.5, "lvl_embed.weight": 0.1, "pos_1LC": 0.1}
    for name, p in var.named_parameters():
        if name in spread_of:
            p.normal_(std=spread_of[name])
        elif name.endswith(("ada_lin.1.weight", "head.weight")):
            p.normal_(std=0.02)
        elif name.endswith(("ada_lin.1.bias", "head.bias", "ada_gss")):
            p.zero_()
        elif name.endswith(("attn.proj.weight", "ffn.fc2.weight")):
            p.mul_(1 / math.sqrt(2 * var.model.depth))
        if name == "shared_ada_lin.1.bias":
            p[: 2 * var.model.width] = 1.0  # gamma1, gamma2


def teacher_forced(var: VAR, labels: Tensor, maps: Tensor, block: object) -> Tensor:
    """``VAR.forward`` with a compiled block: labels (B,), maps (B, L - 1, Z) to logits (B, L, V)."""
    cond = var.begin({"labels": labels}, 1)
    positions = torch.cat([var.level_position(s) for s in range(1, len(var.schedule))])
    x = torch.cat((cond["sos"].unsqueeze(1) + var.level_position(0), (var.word_embed(maps) + positions).float()), dim=1)
    level = torch.arange(len(var.schedule)).repeat_interleave(torch.tensor(var.lengths))
    bias = torch.where(level[:, None] >= level[None, :], 0.0, -math.inf).to(torch.bfloat16)
    for index, layer in enumerate(var.blocks):
        x = block(layer, x, cond[f"adaln.{index:02d}"], bias)  # type: ignore[operator]
    return var.logits(x, cond["head"])


def compiled_block() -> object:
    """One compiled function for the blocks of every depth."""
    layer, resize = whole(0), Resize()

    def run(block: nn.Module, x: Tensor, adaln: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = block(x, {"adaln": adaln}, layer, (1, x.shape[1]), resize, bias=bias).x
        return out

    return torch.compile(run, dynamic=False)


def train_transformer(
    var: VAR, vae: VQVAE, pool: NDArray[np.uint8], folder: Path, minutes: float, batch: int = 8, peak: float = 1.5e-3
) -> None:
    """Trains ``var`` in place on the pool (the world's first pictures); resumes from ``folder/transformer.pt``."""
    schedule, vae = var.schedule, vae.eval().requires_grad_(False)
    initialise(var)
    heavy = [p for n, p in var.named_parameters() if p.ndim == 2 and "emb" not in n]
    light = [p for n, p in var.named_parameters() if not (p.ndim == 2 and "emb" not in n)]
    groups = [{"params": heavy, "weight_decay": 0.03}, {"params": light, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=True)
    training = Training(var, optimizer, Clock(minutes), folder / "transformer.pt")
    training.resume()
    block, short = compiled_block(), shortened(var, len(schedule) - 1)
    level = torch.arange(len(schedule)).repeat_interleave(torch.tensor(var.lengths))
    weight = torch.tensor(var.lengths).float()[level] ** -0.35  # early scales have few tokens and decide most
    means = torch.zeros(len(schedule))
    for progress in training.steps(peak):
        # The same choice in every process, so that none waits for another.
        part = short if progress < SHORT_UNTIL and random.Random(training.step).random() < SHORT_SHARE else var
        index = torch.randint(len(pool), (batch * (2 if part is short else 1),))
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            features = vae.features(signed(pool[index.numpy()]))
        targets, maps = lesson(vae, features.float(), part.schedule, EXCHANGED * torch.rand(len(index)))
        labels = index % len(CLASS_NAMES)  # the world's rule
        labels = torch.where(torch.rand(len(index)) < LABEL_DROP, len(CLASS_NAMES), labels)
        with torch.autocast("cpu", torch.bfloat16):
            logits = teacher_forced(part, labels, maps, block)
        losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        shares = weight[: targets.shape[1]]
        training.update((losses * shares).mean() / shares.mean())
        with torch.no_grad():
            for scale in range(len(part.schedule)):
                mean = losses[:, level[: targets.shape[1]] == scale].mean()
                means[scale] = mean if means[scale] == 0 else 0.97 * means[scale] + 0.03 * mean
        if training.step % 50 == 0:
            training.report(**{f"s{side[0]}": value for side, value in zip(schedule, means.tolist(), strict=True)})
