from __future__ import annotations

import math

import numpy as np
import pytest

from nextscale.compare.quality import K1, K2, SIGMA, WINDOW, likeness, psnr, ssim
from nextscale.plan.errors import InputError


def noise(seed: int, height: int = 19, width: int = 23) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, 3)).astype(np.float32)


def test_equal_pictures_have_no_noise() -> None:
    picture = noise(0)
    found = likeness(picture, picture)
    assert found.psnr is None
    assert found.ssim == pytest.approx(1.0, abs=1e-12)


def test_psnr_of_a_known_error() -> None:
    picture = np.full((12, 12, 3), 0.5, np.float32)
    assert psnr(picture, picture + np.float32(0.1)) == pytest.approx(20.0, abs=1e-4)


def test_ssim_of_flat_pictures_is_their_luminance_term() -> None:
    a, b, c1 = 0.2, 0.6, K1**2
    flat = [np.full((15, 15, 3), value) for value in (a, b)]
    assert ssim(*flat) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-9)


def test_ssim_is_the_mean_of_every_window_by_its_formula() -> None:
    a, b = noise(1).astype(np.float64), noise(2).astype(np.float64)
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.array([[math.exp(-(i * i + j * j) / (2 * SIGMA**2)) for j in offsets] for i in offsets])
    weights = (weights / weights.sum())[:, :, None]
    found = []
    for y in range(a.shape[0] - WINDOW + 1):
        for x in range(a.shape[1] - WINDOW + 1):
            p, q = a[y : y + WINDOW, x : x + WINDOW], b[y : y + WINDOW, x : x + WINDOW]
            mean_p, mean_q = (weights * p).sum((0, 1)), (weights * q).sum((0, 1))
            var_p, var_q = (weights * (p - mean_p) ** 2).sum((0, 1)), (weights * (q - mean_q) ** 2).sum((0, 1))
            both = (weights * (p - mean_p) * (q - mean_q)).sum((0, 1))
            luminance = (2 * mean_p * mean_q + K1**2) / (mean_p**2 + mean_q**2 + K1**2)
            found.append(luminance * (2 * both + K2**2) / (var_p + var_q + K2**2))
    assert ssim(a, b) == pytest.approx(float(np.mean(found)), rel=1e-9)


def test_ssim_falls_as_noise_grows() -> None:
    picture = noise(3)
    values = [ssim(picture, picture + strength * (noise(4) - 0.5)) for strength in (0.05, 0.2, 0.8)]
    assert values == sorted(values, reverse=True)


def test_pictures_smaller_than_the_window_have_no_ssim() -> None:
    small = noise(5, 10, 30)
    assert likeness(small, small).ssim is None
    with pytest.raises(InputError, match="smaller than SSIM's window of 11"):
        ssim(small, small)


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        psnr(noise(0), noise(0)[:-1])
