"""Training of a small Infinity: its bitwise tokenizer, then its transformer on the bits of pictures and sentences.

Both follow the paper in the essentials: residual bits over scales with a straight-through gradient, codes of one size,
bits as two classes each, and self-correction (a share of the input's bits is flipped, and the later scales' targets are
those that mend it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo_tokenizer import picture_loss, signed
from demo_training import Clock, Training
from numpy.typing import NDArray
from torch import Tensor, nn

from nextscale.export.models.bsq import BSQVAE
from nextscale.export.models.infinity import Infinity
from nextscale.export.text_encoder import TextEncoder
from nextscale.plan.types import Plan, Step
from nextscale.runtime.text import TextTokenizer

WARMUP, RAMP = 200, 400  # steps as a plain autoencoder, and until the decoder sees nothing but bits
COMMITMENT, BALANCE = 0.5, 0.02
FLIPPED = 0.2  # each picture has a share between 0 and this of its input bits flipped
TEXT_DROP = 0.1  # of the sentences, so that there is something to be guided away from


# --- tokenizer --------------------------------------------------------------------------------------------------------


def quantise(vae: BSQVAE, features: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Features (B, Z, S, S) to their code sum with a straight-through gradient, and the loss of the features."""
    target, total = features.detach(), torch.zeros_like(features)
    for step in plan.steps:
        total, _ = added(vae, total, bits_of(vae, target - total, step), step, plan)
    uneven = torch.tanh(2 * features).mean((0, 2, 3)).square().mean()  # a channel of one sign says nothing
    return features + (total - features).detach(), COMMITMENT * F.mse_loss(features, total) + BALANCE * uneven


def bits_of(vae: BSQVAE, rest: Tensor, step: Step) -> Tensor:
    """The bits (B, n, bits) that come nearest to what a scale still has to say, (B, Z, S, S)."""
    book = vae.quantize
    small = book.patched(book.resize(rest, book.latents(step.grid), "area"))
    return (small > 0).to(torch.int32).flatten(2).transpose(1, 2)


def added(vae: BSQVAE, total: Tensor, bits: Tensor, step: Step, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """The code sum with a scale's bits, and the map of the next (B, n_next, bits), None after the last."""
    book, rule = vae.quantize, step.next_input
    total = total + book.contribution(book.codes(bits, step.grid), plan.code_grid, rule.up, rule.phi)
    return total, None if rule.grid is None else book.next_input(total, rule)


@torch.no_grad()
def initialise_tokenizer(vae: BSQVAE) -> None:
    """Convolutions that keep the signal's size, residual branches that start small."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
            if ".conv2." in name:
                module.weight.mul_(0.1)


def train_tokenizer(
    vae: BSQVAE,
    plan: Plan,
    pool: NDArray[np.uint8],
    folder: Path,
    minutes: float,
    batch: int = 16,
    peak: float = 1.5e-3,
) -> None:
    """Trains ``vae`` in place on the pool of pictures; resumes from ``folder/tokenizer.pt``."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    training = Training(vae, optimizer, Clock(minutes), folder / "tokenizer.pt")
    if not training.resume():
        initialise_tokenizer(vae)
    mean = 0.0
    for _ in training.steps(peak):
        images = signed(pool[torch.randint(len(pool), (batch,)).numpy()]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            features = vae.features(images)
        features = features.float()
        through, loss = quantise(vae, features, plan)
        mixed = min(1.0, max(0, training.step - WARMUP) / RAMP)
        with torch.autocast("cpu", torch.bfloat16):
            shown = vae.decoder(features + mixed * (through - features))
        seen = picture_loss(shown.float(), images)
        training.update(seen + mixed * loss)
        mean = 0.98 * mean + 0.02 * seen.item() if mean else seen.item()
        if training.step % 50 == 0:
            error = F.mse_loss(shown.float().detach().clamp(-1, 1), images) / 4
            training.report(loss=mean, bits=loss.item(), psnr=-10 * math.log10(error.item()))


# --- transformer ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def lesson(vae: BSQVAE, features: Tensor, plan: Plan, flipped: Tensor) -> tuple[Tensor, Tensor]:
    """Target bits (B, L, bits) and input maps (B, L - 1, bits) of a batch, of features (B, Z, S, S).

    A share ``flipped`` (B,) of the input's bits is wrong; the targets of a scale are the best bits after those before
    it, wrong ones among them.
    """
    total, targets, maps = torch.zeros_like(features), list[Tensor](), list[Tensor]()
    for step in plan.steps:
        bits = bits_of(vae, features - total, step)
        targets.append(bits)
        wrong = torch.rand(bits.shape) < flipped[:, None, None]
        total, following = added(vae, total, torch.where(wrong, 1 - bits, bits), step, plan)
        if following is not None:
            maps.append(following)
    return torch.cat(targets, 1).long(), torch.cat(maps, 1)


class Reader:
    """Sentences as the model reads them: a tokenizer and a frozen encoder."""

    def __init__(self, tokenizer: TextTokenizer, encoder: TextEncoder) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder.eval().requires_grad_(False)

    @torch.no_grad()
    def read(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (B, T, width) and lengths (B,) int32."""
        tokens = self.tokenizer.ids_of(sentences)
        ids, length = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.length)
        features: Tensor = self.encoder(ids, length)
        return features, length


@torch.no_grad()
def initialise_transformer(var: Infinity) -> None:
    """Small logits, open gates, and residual branches scaled to the depth."""
    for name, parameter in var.named_parameters():
        if name.endswith(("shared_ada_lin.1.weight", "head_nm.ada_lin.1.weight", "head.weight", "pos_start")):
            parameter.normal_(std=0.02)
        elif name == "lvl_embed.weight":
            parameter.normal_(std=0.1)
        elif name.endswith(("ada_lin.1.bias", "head.bias", "ada_gss")):
            parameter.zero_()
        elif name.endswith(("sa.proj.weight", "ca.proj.weight", "ffn.fc2.weight")) and "block" in name:
            parameter.mul_(1 / math.sqrt(3 * var.model.depth))
        if name == "shared_ada_lin.1.bias":
            parameter[: 2 * var.model.width] = 1.0  # gamma1, gamma2


def loss_of(
    var: Infinity, text: Tensor, length: Tensor, targets: Tensor, maps: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of a batch's bits, weighted by token (L,), and that of each token."""
    dropped = torch.rand(len(text)) < TEXT_DROP
    text = torch.where(dropped[:, None, None], var.derived("uncond"), text)
    with torch.autocast("cpu", torch.bfloat16):
        logits = var({"text": text, "text_length": length}, maps)
    pairs = logits.float().unflatten(2, (-1, 2))  # (B, L, bits, 2)
    losses = F.cross_entropy(pairs.flatten(0, 2), targets.flatten(), reduction="none").view(targets.shape).mean((0, 2))
    return (losses * weight).sum() / weight.sum(), losses.detach()


def train_transformer(
    var: Infinity,
    vae: BSQVAE,
    reader: Reader,
    plan: Plan,
    pool: NDArray[np.uint8],
    sentences: Sequence[str],
    folder: Path,
    minutes: float,
    batch: int = 12,
    peak: float = 1.2e-3,
) -> None:
    """Trains ``var`` in place on pictures and their sentences; resumes from ``folder/transformer.pt``."""
    vae = vae.eval().requires_grad_(False)
    heavy = [p for n, p in var.named_parameters() if p.ndim == 2 and "embed" not in n and n != "cfg_uncond"]
    held = {id(p) for p in heavy}
    light = [p for p in var.parameters() if id(p) not in held]
    groups = [{"params": heavy, "weight_decay": 0.03}, {"params": light, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95))
    training = Training(var, optimizer, Clock(minutes), folder / "transformer.pt")
    if not training.resume():
        initialise_transformer(var)
    lengths = torch.tensor([step.tokens_out for step in plan.steps])
    weight = torch.repeat_interleave(lengths.float() ** -0.35, lengths)  # early scales have few tokens and decide most
    means: list[float] = []
    for _ in training.steps(peak):
        index = torch.randint(len(pool), (batch,)).numpy()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = vae.features(signed(pool[index]))
        targets, maps = lesson(vae, features.float(), plan, FLIPPED * torch.rand(batch))
        loss, losses = loss_of(var, *reader.read([sentences[i] for i in index]), targets, maps, weight)
        training.update(loss)
        now = [float(part.mean()) for part in losses.split(lengths.tolist())]
        means = [0.97 * a + 0.03 * b for a, b in zip(means, now, strict=True)] if means else now
        if training.step % 50 == 0:
            training.report(**{f"s{step.grid[0]}": mean for step, mean in zip(plan.steps, means, strict=True)})
