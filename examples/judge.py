"""The judge of the demo model's pictures: a small classifier of the drawn pictures, and what is computed from it.

``Judge`` gives class logits and 64 features; ``frechet`` is the Frechet distance of two feature sets (FID's idea on
this world's features: its numbers compare with each other and the real-against-real value, never with ImageNet's).

    python examples/judge.py --out checkpoints/demo/judge.safetensors      # a few minutes on two cores
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo_world import CLASS_NAMES, FRESH, TRAINING, labels, pictures
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FEATURES = 64
Verdicts = tuple[NDArray[np.int64], NDArray[np.float64]]


class Judge(nn.Module):
    """Pictures (B, 3, 64, 64) in [0, 1] to logits (B, 16); four strided convolutions, mean and maximum pooled."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        sizes = (5, 3, 3, 3)
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, k, stride=2, padding=k // 2) for (i, o), k in zip(pairwise(widths), sizes, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths[1:])
        self.join = nn.Linear(64 * 4 * 4, FEATURES)
        self.head = nn.Linear(FEATURES, len(CLASS_NAMES))

    def features(self, images: Tensor) -> Tensor:
        """The layer before the last: (B, 64)."""
        x = 2 * images - 1
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        out: Tensor = F.silu(self.join(x.flatten(1)))
        return out

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def load_judge(path: Path) -> Judge:
    """The trained judge, ready to judge."""
    judge = Judge()
    judge.load_state_dict(load_file(path))
    return judge.eval()


@torch.no_grad()
def verdicts(judge: Judge, images: NDArray[np.uint8], batch: int = 500) -> Verdicts:
    """Classes (N,) and features (N, 64) that the judge sees in uint8 pictures (N, 64, 64, 3)."""
    features = torch.cat([judge.features(as_tensor(images[i : i + batch])) for i in range(0, len(images), batch)])
    return judge.head(features).argmax(1).numpy(), features.double().numpy()


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """``|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))`` of the features' normal approximations, (N, 64) each."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (AB)^(1/2) = sum of the square roots of the eigenvalues of A^(1/2) B A^(1/2), a symmetric matrix.
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def bootstrap_mean(values: NDArray[np.float64], draws: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Means of ``draws`` resamples with replacement of ``values`` (N,); their quantiles are intervals."""
    rng = np.random.default_rng(seed)
    return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)])


def interval(means: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The central bootstrap interval."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def upper_bound(means: NDArray[np.float64], level: float = 0.95) -> float:
    """The one-sided bootstrap bound from above."""
    return float(np.quantile(means, level))


def train(seconds: float, pool: NDArray[np.uint8], seed: int = 0) -> Judge:
    """Trains a judge on the pool (pictures 0, 1, 2 ... of the world) for about that long."""
    torch.manual_seed(seed)
    judge, classes, batch = Judge(), torch.from_numpy(labels(0, len(pool))), 128
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    start, step, done = time.monotonic(), 0, 0.0
    while done < 1.0:
        index = torch.randint(len(pool), (batch,))
        images = as_tensor(pool[index.numpy()]) + 0.02 * torch.randn(batch, 1, 64, 64)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, step / 100) * (1 - done) + 1e-6
        loss = F.cross_entropy(judge(images), classes[index], label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step, done = step + 1, (time.monotonic() - start) / seconds
        if step % 200 == 0:
            print(f"step {step}  {100 * done:3.0f} %  loss {loss.item():.4f}", flush=True)
    return judge.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the weights go (.safetensors)")
    parser.add_argument("--pool", type=Path, help="pictures drawn before (demo_world.py --out pool.npy)")
    parser.add_argument("--minutes", type=float, default=3.0)
    options = parser.parse_args()
    pool = np.load(options.pool, mmap_mode="r") if options.pool else pictures(TRAINING[0], 40_000)
    judge = train(60 * options.minutes, pool)
    fresh = pictures(FRESH[0], 8_000)
    seen, _ = verdicts(judge, fresh)
    truth = labels(FRESH[0], len(fresh))
    print(f"accuracy on {len(fresh)} fresh pictures: {100 * (seen == truth).mean():.2f} %")
    for c, name in enumerate(CLASS_NAMES):
        wrong = seen[(truth == c) & (seen != c)]
        print(f"  {name:9s} {len(wrong):3d} wrong {[CLASS_NAMES[w] for w in wrong[:6]]}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in judge.state_dict().items()}
    save_file(state, options.out, metadata={"classes": " ".join(CLASS_NAMES)})


if __name__ == "__main__":
    main()
