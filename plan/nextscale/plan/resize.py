"""Resizing as products with one-axis matrices: ``out = M_h @ x @ M_w.T``, numpy float32.

A matrix has shape ``(n_out, n_in)`` and its rows sum to 1. Two per resize are all that a graph or an eager model needs,
so both compute the same numbers whatever their library's own resize does. The weights are worked out in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import InputError

Matrix = NDArray[np.float32]

CUBIC_A = -0.75  # the sharpness that F.interpolate's bicubic uses


def area_matrix(n_in: int, n_out: int) -> Matrix:
    """Means over bins, ``(n_out, n_in)``: bin i is ``floor(i n_in/n_out) .. ceil((i+1) n_in/n_out)``.

    This is adaptive average pooling, also where it enlarges (bins then overlap): FastVAR's restore and VAR's next input
    use it (fact sheet, notation and 4.1).
    """
    _check(n_in, n_out)
    i = np.arange(n_out)[:, None]
    start, end = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
    j = np.arange(n_in)[None, :]
    inside = (start <= j) & (j < end)
    return (inside / (end - start)).astype(np.float32)


def bicubic_matrix(n_in: int, n_out: int) -> Matrix:
    """Cubic convolution with a = -0.75, ``(n_out, n_in)``: ``F.interpolate(bicubic, align_corners=False)``.

    Taps beyond the border count for the border sample; shrinking is not antialiased.
    """
    _check(n_in, n_out)
    position = _half_pixel(n_in, n_out)
    first = np.floor(position).astype(int) - 1
    return _taps(n_in, first, [_cubic(position - (first + tap)) for tap in range(4)])


def bilinear_matrix(n_in: int, n_out: int) -> Matrix:
    """Two-tap interpolation, ``(n_out, n_in)``: ``F.interpolate(bilinear, align_corners=False)``, not antialiased."""
    _check(n_in, n_out)
    position = np.maximum(_half_pixel(n_in, n_out), 0.0)
    first = np.floor(position).astype(int)
    return _taps(n_in, first, [1.0 - (position - first), position - first])


RESIZES: dict[str, Callable[[int, int], Matrix]] = {
    "area": area_matrix,
    "bicubic": bicubic_matrix,
    "bilinear": bilinear_matrix,
}


def resize_matrix(mode: str, n_in: int, n_out: int) -> Matrix:
    """The matrix of a resize named as in a plan's ``NextInput``; raises :class:`InputError` for an unknown name."""
    if mode not in RESIZES:
        raise InputError(f"resize mode {mode!r} is unknown; known are {', '.join(sorted(RESIZES))}")
    return RESIZES[mode](n_in, n_out)


def _half_pixel(n_in: int, n_out: int) -> NDArray[np.float64]:
    """Where each output's centre lies among the input's samples, ``(n_out,)``."""
    return (np.arange(n_out) + 0.5) * n_in / n_out - 0.5


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(distance)
    near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
    far = CUBIC_A * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, far)


def _taps(n_in: int, first: NDArray[np.int_], weights: list[NDArray[np.float64]]) -> Matrix:
    """Adds the weights of neighbouring taps, from ``first`` on, into a matrix; taps outside fall on the border."""
    matrix = np.zeros((len(first), n_in))
    rows = np.arange(len(first))
    for tap, weight in enumerate(weights):
        np.add.at(matrix, (rows, np.clip(first + tap, 0, n_in - 1)), weight)
    return matrix.astype(np.float32)


def _check(n_in: int, n_out: int) -> None:
    if n_in < 1 or n_out < 1:
        raise InputError(f"cannot resize {n_in} samples to {n_out}: both must be 1 or more")
