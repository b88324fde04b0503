"""Guidance, filters and sampling from given noise: the mathematics after the head, inside every step graph."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def guided(logits: Tensor, guidance: Tensor) -> Tensor:
    """``sum_r guidance[image, r] * logits_r``: (G * B, n, V) with weights (B, G) to (B, n, V), float32."""
    images, rows = guidance.shape
    by_row = logits.float().reshape(rows, images, *logits.shape[1:])
    return (guidance.T[:, :, None, None] * by_row).sum(dim=0)


def per_draw(outputs: Tensor, vocabulary: int) -> Tensor:
    """A head's numbers by draws: (B, n, draws * V) to (B, n * draws, V); where a token is one draw, as they are."""
    images, n, width = outputs.shape
    return outputs if width == vocabulary else outputs.reshape(images, n * width // vocabulary, vocabulary)


def filtered(logits: Tensor, top_k: int, top_p: Tensor) -> Tensor:
    """Top-k, then top-p: what is filtered out becomes -inf. (B, n, V) with ``top_p`` (B,), 1 keeps all of top-k.

    As upstream: values that tie with the k-th survive, and a value falls when it and all smaller ones together hold
    at most 1 - top_p; the largest always stays. Only the k largest values are sorted, never the whole vocabulary
    (TensorRT's TopK ends at 3840).
    """
    k = top_k if 0 < top_k < logits.shape[-1] else logits.shape[-1]
    largest = logits.topk(k, dim=-1).values  # (B, n, k), descending
    kth = largest[..., -1:]
    logits = torch.where(logits < kth, -math.inf, logits)
    mass = torch.exp(largest - logits.logsumexp(dim=-1, keepdim=True))
    before = mass.cumsum(dim=-1) - mass  # mass of all larger values
    p = top_p[:, None, None]
    nucleus = torch.where((before < p) | (p >= 1), largest, math.inf).amin(dim=-1, keepdim=True)
    return torch.where(logits < nucleus, -math.inf, logits)


def gumbel(noise: Tensor) -> Tensor:
    """Standard Gumbel values of uniforms in (0, 1), float32."""
    return -torch.log(-torch.log(noise))


def sample(logits: Tensor, noise: Tensor, tokens: Tensor) -> Tensor:
    """argmax(log p - log(-log u)) where ``tokens`` is -1, else the forced token: (B, n, V) to (B, n) int32."""
    drawn = (logits + gumbel(noise)).argmax(dim=-1).to(torch.int32)
    return torch.where(tokens >= 0, tokens, drawn)


def smooth_weights(logits: Tensor, noise: Tensor, ratio: float) -> Tensor:
    """VAR's ``more_smooth``: Gumbel-softmax weights over the codebook, (B, n, V), from filtered logits.

    ``ratio`` is scale / (scales - 1): the later the scale, the sharper.
    """
    tau = max(0.27 * (1 - 0.95 * ratio), 0.005)
    return torch.softmax((logits * (1 + ratio) + gumbel(noise)) / tau, dim=-1)
