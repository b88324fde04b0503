"""The one noise rule: uniforms of Philox4x64-10 that every backend and the eager model share.

Key ``(seed, image)``, counter words ``(block, step, stream, 0)``, each 64-bit word split low half first,
``u = ((x >> 9) + 0.5) * 2**-23``: exact in float32, and never 0 or 1. So a picture's noise depends on its seed and
its number alone, not on its batch, and a service in another language can draw the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import InputError

SAMPLING, SMOOTHING, DIFFUSION = 0, 1, 2

Key = tuple[int, int]


def uniforms(seed: int, image: int, step: int, stream: int, count: int) -> NDArray[np.float32]:
    """``(count,)`` float32 uniforms in (0, 1) of one picture, step and stream."""
    return step_uniforms(seed, (image,), step, stream, (count,)).reshape(count)


def step_uniforms(
    seed: int, images: Sequence[int], step: int, stream: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """``(len(images), *shape)`` float32 uniforms of one step, for the pictures of those numbers."""
    out = np.empty((len(images), *shape), np.float32)
    return fill(out, [(seed, image) for image in images], step, stream)


def fill(out: NDArray[np.float32], keys: Sequence[Key], step: int, stream: int) -> NDArray[np.float32]:
    """Write into ``out (images, ...)`` what :func:`uniforms` gives for each ``(seed, image)`` key; returns it.

    ``out`` is float32 and C-contiguous; a picture's values are in the order of its memory: token, then vocabulary.
    """
    if out.dtype != np.float32 or not out.flags.c_contiguous or len(out) != len(keys):
        raise InputError(
            f"noise goes into a contiguous float32 array of {len(keys)} pictures; found {out.dtype} {out.shape}"
        )
    for row, (seed, image) in zip(out.reshape(len(keys), -1), keys, strict=True):
        words = _philox(seed, image, step, stream).random_raw((row.size + 1) // 2)
        halves = words.astype("<u8", copy=False).view("<u4")[: row.size]
        np.right_shift(halves, 9, out=halves)
        np.add(halves, 0.5, out=row, casting="same_kind", dtype=np.float32)
        np.multiply(row, np.float32(2.0**-23), out=row)
    return out


def _philox(seed: int, image: int, step: int, stream: int) -> np.random.Philox:
    """The generator whose first block is ``(0, step, stream, 0)``: numpy counts up before a block, so it starts one
    below, modulo 2**256 with the first word lowest."""
    for name, word in (("seed", seed), ("image", image), ("step", step), ("stream", stream)):
        if not 0 <= word < 2**64:
            raise InputError(f"{name} must be a whole number from 0 to 2**64 - 1; found {word}")
    counter = ((step << 64) + (stream << 128) - 1) % 2**256
    return np.random.Philox(counter=counter, key=seed + (image << 64))
