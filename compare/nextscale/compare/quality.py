"""How alike two pictures are: PSNR and SSIM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from nextscale.plan.errors import InputError

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03

Picture = NDArray[np.floating]


@dataclass(frozen=True)
class Likeness:
    """PSNR in dB (None: the pictures are equal) and SSIM (1: equal; None: smaller than its window)."""

    psnr: float | None
    ssim: float | None


def likeness(picture: Picture, other: Picture) -> Likeness:
    """Of two pictures (H, W, 3) in [0, 1]; raises :class:`~nextscale.plan.errors.InputError` for unlike shapes."""
    fits = min(picture.shape[:2]) >= WINDOW
    return Likeness(psnr(picture, other), ssim(picture, other) if fits else None)


def psnr(picture: Picture, other: Picture) -> float | None:
    """Peak signal-to-noise ratio in dB of values in [0, 1]; None where there is no noise at all."""
    _check(picture, other)
    error = float(np.square(picture.astype(np.float64) - other).mean())
    return None if error == 0 else float(-10 * np.log10(error))


def ssim(picture: Picture, other: Picture) -> float:
    """Structural similarity of values in [0, 1], mean over pixels and channels.

    Wang et al. (2004): Gaussian window of 11 x 11 and sigma 1.5, K1 0.01, K2 0.03, only where the window fits; sides
    are 11 pixels or more.
    """
    _check(picture, other)
    if min(picture.shape[:2]) < WINDOW:
        raise InputError(f"pictures of {picture.shape[:2]} pixels are smaller than SSIM's window of {WINDOW}")
    a, b = picture.astype(np.float64), other.astype(np.float64)
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float((luminance * structure).mean())


def _blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, 3) to (H - 10, W - 10, 3): the window's weighted mean, one axis after the other."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (0, 1):
        x = sliding_window_view(x, WINDOW, axis=axis) @ weights
    return x


def _check(picture: Picture, other: Picture) -> None:
    if picture.shape != other.shape or picture.ndim != 3:
        raise InputError(
            f"two pictures (H, W, channels) of one shape are compared; found {picture.shape}, {other.shape}"
        )
