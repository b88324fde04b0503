"""The chain's kernels in numpy, taking what they are launched with."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from nextscale.runtime.noise import fill


def uniforms(
    grid: tuple[int, ...], _: tuple[int, ...], keys: Any, step: Any, stream: Any, count: Any, out: Any
) -> None:
    """As ``chain.cu`` has it: eight values a thread."""
    pairs = _array(keys, (grid[1], 2), np.uint64)
    noise = _array(out, (grid[1], int(count)), np.float32)
    fill(noise, [(int(seed), int(image)) for seed, image in pairs], int(step), int(stream))


def flag_nonfinite(grid: tuple[int, ...], _: tuple[int, ...], values: Any, count: Any, flags: Any) -> None:
    """Only ever sets."""
    found = _array(values, (grid[1], int(count)), np.float32)
    _array(flags, (grid[1],), np.int32)[~np.isfinite(found).all(axis=1)] = 1


def _array(address: Any, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = (ctypes.c_uint8 * size).from_address(int(address))
    return np.frombuffer(raw, dtype).reshape(shape)


KERNELS = {"uniforms": uniforms, "flag_nonfinite": flag_nonfinite}
