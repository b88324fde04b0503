"""Training of the demo model's multi-scale VQVAE: residual quantisation with a straight-through gradient.

The recipe is VAR's in its essentials (residual quantisation over scales, commitment 0.25, partially shared phi
convolutions), with an L1 and edge loss in place of the perceptual and adversarial ones, and a codebook that starts
from features of the pictures and has its unused rows drawn anew from them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo_training import Clock, Training, spread
from numpy.typing import NDArray
from torch import Tensor, nn

from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.schedules import phi_index
from nextscale.plan.types import Grid

Schedule = tuple[Grid, ...]
WARMUP = 400  # steps as a plain autoencoder before the codebook exists
RAMP = 500  # steps from there until the decoder sees nothing but quantised features
COMMITMENT = 0.25


def signed(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def quantise(vae: VQVAE, features: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Code sum (B, Z, S, S) with a straight-through gradient, loss, tokens (B, L), what each stands for (B, L, Z)."""
    book, target = vae.quantize, features.detach()
    rest, total = target, torch.zeros_like(features)
    loss, tokens, wanted = features.new_zeros(()), [], []
    for scale, grid in enumerate(schedule):
        small = book.resize(rest, grid, "area").flatten(2).transpose(1, 2)  # (B, n, Z)
        with torch.no_grad():
            index = book.nearest(small)  # (B, n)
        phi = phi_index(scale, len(schedule), book.phi)
        added = book.contribution(book.codes(index, grid), schedule[-1], "bicubic", phi)
        total, rest = total + added, rest - added.detach()
        loss = loss + F.mse_loss(total, target) / len(schedule)
        tokens.append(index)
        wanted.append(small)
    through = features + (total - features).detach()
    # Commitment to the whole sum only: to the coarse ones it would pull all features towards their mean.
    return through, loss + COMMITMENT * F.mse_loss(features, total.detach()), torch.cat(tokens, 1), torch.cat(wanted, 1)


def picture_loss(shown: Tensor, images: Tensor) -> Tensor:
    """L1 and L2 of the pixels, L1 of their differences across and down: flat areas flat, edges sharp."""
    loss = F.l1_loss(shown, images) + F.mse_loss(shown, images)
    for axis in (2, 3):
        loss = loss + 0.5 * F.l1_loss(shown.diff(dim=axis), images.diff(dim=axis))
    return loss


@torch.no_grad()
def initialise(vae: VQVAE) -> None:
    """Convolutions that keep the signal's size, residual branches that start small, phi as the identity."""
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            if name.endswith(("conv2", "proj_out")):
                module.weight.mul_(0.1)
            if ".quant_resi." in name:
                nn.init.dirac_(module.weight)


@torch.no_grad()
def draw_codebook(vae: VQVAE, images: Tensor, schedule: Schedule) -> None:
    """Fills the codebook with vectors that the scales of these pictures (B, 3, H, W) are to express."""
    book, features = vae.quantize.embedding.weight, vae.features(images)
    for _ in range(3):  # the first draw knows no residuals yet
        wanted = quantise(vae, features, schedule)[3].flatten(0, 1)
        book.copy_(wanted[torch.randint(len(wanted), (len(book),))])


@torch.no_grad()
def revive(vae: VQVAE, usage: Tensor, wanted: Tensor, below: float) -> int:
    """Rows of the codebook that are hardly used become vectors of this batch; returns how many."""
    book = vae.quantize.embedding.weight
    dead = (usage < below).nonzero().flatten()
    flat = wanted.flatten(0, 1)
    book[dead] = flat[torch.randint(len(flat), (len(dead),))]
    usage[dead] = usage.mean()
    return len(dead)


def train_tokenizer(
    vae: VQVAE,
    schedule: Schedule,
    pool: NDArray[np.uint8],
    folder: Path,
    minutes: float,
    batch: int = 16,
    peak: float = 1.5e-3,
) -> None:
    """Trains ``vae`` in place on the pool of pictures; resumes from ``folder/tokenizer.pt``."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    usage = torch.ones(vae.quantize.embedding.num_embeddings)
    training = Training(vae, optimizer, Clock(minutes), folder / "tokenizer.pt", extra={"usage": usage})
    if training.resume():
        usage = training.extra["usage"]
    else:
        initialise(vae)
    mean = 0.0
    for progress in training.steps(peak):
        images = signed(pool[torch.randint(len(pool), (batch,)).numpy()]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            features = vae.features(images)
        features = features.float()
        if training.step == WARMUP:
            draw_codebook(vae, signed(pool[:256]), schedule)
            spread([vae.quantize.embedding.weight])
        if training.step < WARMUP:
            through, quantised, tokens, wanted = features, features.new_zeros(()), None, None
        else:
            through, quantised, tokens, wanted = quantise(vae, features, schedule)
            mixed = min(1.0, (training.step - WARMUP) / RAMP)  # the decoder meets quantised features step by step
            through, quantised = features + mixed * (through - features), mixed * quantised
        size = 0.1 * (features.std((0, 2, 3)) - 1).square().mean()  # commitment alone would reward shrinking
        with torch.autocast("cpu", torch.bfloat16):
            shown = vae.decoder(vae.post_quant_conv(through))
        seen = picture_loss(shown.float(), images)
        training.update(seen + quantised + size)
        mean = 0.98 * mean + 0.02 * seen.item() if mean else seen.item()
        if tokens is not None and wanted is not None:
            counts = torch.bincount(tokens.flatten(), minlength=len(usage)).float()
            usage.mul_(0.98).add_(counts, alpha=0.02)
            if training.step % 40 == 0 and progress < 0.75:
                revive(vae, usage, wanted, below=0.5)
                spread([vae.quantize.embedding.weight])
        if training.step % 50 == 0:
            share = usage / usage.sum()
            words = float(torch.exp(-(share * (share + 1e-9).log()).sum()))
            with torch.no_grad():
                psnr = -10 * torch.log10(F.mse_loss(shown.float().clamp(-1, 1), images) / 4).item()
            training.report(loss=mean, quantised=quantised.item(), psnr=psnr, words=words)
