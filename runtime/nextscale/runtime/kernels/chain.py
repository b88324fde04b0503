"""The kernels of ``chain.cu``: their source and launches, as plain functions. Nothing here needs CUDA."""

from __future__ import annotations

from importlib import resources

import numpy as np

from nextscale.plan.errors import InputError
from nextscale.plugins.kernel import Launch

FILE = "chain.cu"
UNIFORMS, FLAG_NONFINITE = "uniforms", "flag_nonfinite"
KERNELS = (UNIFORMS, FLAG_NONFINITE)

THREADS = 256
# Of one image's values: enough for every SM of a large GPU, and few enough that threads have several values each.
MOST_BLOCKS = 1024
_MOST_IMAGES = 2**16 - 1  # CUDA's limit of a grid's y


def source() -> str:
    """The kernels' CUDA C++."""
    return resources.files("nextscale.runtime.kernels").joinpath(FILE).read_text(encoding="utf-8")


def uniforms(keys: int, out: int, images: int, count: int, step: int, stream: int) -> Launch:
    """Noise as :func:`nextscale.runtime.noise.fill` makes it, bit for bit.

    ``keys`` is the address of (images, 2) 64-bit words, each picture's seed and number, read when the kernel runs;
    ``out`` that of (images, count) float32, written whole. Raises :class:`~nextscale.plan.errors.InputError`.
    """
    _check_counts(images, count)
    for name, word in (("step", step), ("stream", stream)):
        if not 0 <= word < 2**64:
            raise InputError(f"{name} must be a whole number from 0 to 2**64 - 1; found {word}")
    blocks = -(-count // (8 * THREADS))
    if blocks >= 2**31:
        raise InputError(f"one picture's noise has fewer than 2**42 values; found {count}")
    arguments = (np.uint64(keys), np.uint64(step), np.uint64(stream), np.int64(count), np.uint64(out))
    return Launch(UNIFORMS, (blocks, images, 1), (THREADS, 1, 1), arguments)


def flag_nonfinite(values: int, flags: int, images: int, count: int) -> Launch:
    """Sets a picture's flag to 1 where its values hold NaN or infinity, and touches no other.

    ``values`` is the address of (images, count) float32, ``flags`` that of (images,) int32.
    """
    _check_counts(images, count)
    blocks = min(-(-count // (4 * THREADS)), MOST_BLOCKS)
    arguments = (np.uint64(values), np.int64(count), np.uint64(flags))
    return Launch(FLAG_NONFINITE, (blocks, images, 1), (THREADS, 1, 1), arguments)


def _check_counts(images: int, count: int) -> None:
    if not 1 <= images <= _MOST_IMAGES or count < 1:
        raise InputError(
            f"a kernel runs for 1 to {_MOST_IMAGES} images of at least one value; found {images} of {count}"
        )
