"""The CUDA kernel of ScatterRestore: its source, how it is compiled, and with what it is launched.

Plain functions of shapes, for whoever launches it: a TensorRT engine (:mod:`nextscale.plugins.tensorrt_plugin`, whose
lengths are symbolic expressions), a test, a benchmark. Nothing here needs CUDA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from nextscale.plugins.signature import INPUTS, NAME, ScatterRestoreError, check_shapes

KERNEL = "scatter_restore"
FILE = "scatter_restore.cu"
# The oldest GPU that its PTX is for: bfloat16 came with Ampere. Older ones take the function's standard operators.
ARCHITECTURE = "compute_80"
# What the source calls the dtypes of kept and cache, and of residual and result.
DTYPES = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16"}
# As in the source: threads of one token, tokens of one block.
LANES, TOKENS = 32, 8

Shapes = Mapping[str, Sequence[Any]]
Extent = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """A kernel's launch: its name, its extents (x, y, z), its arguments in order (addresses as uint64)."""

    kernel: str
    grid: Extent
    block: Extent
    arguments: tuple[np.generic, ...]


def source() -> str:
    """The kernel's CUDA C++."""
    return resources.files("nextscale.plugins").joinpath(FILE).read_text(encoding="utf-8")


def source_hash() -> str:
    """SHA-256, in hexadecimal, of all that its PTX is made from: the source, the architecture, the compiler's options.

    An engine that was built with another is another engine.
    """
    every = [option for part in DTYPES for full in DTYPES for option in options(part, full)]
    return hashlib.sha256("\0".join([source(), ARCHITECTURE, *every]).encode()).hexdigest()


def options(part: str, full: str) -> tuple[str, ...]:
    """Compiler options for kept and cache of dtype ``part``, residual and result of dtype ``full``."""
    for dtype in (part, full):
        if dtype not in DTYPES:
            raise ScatterRestoreError(f"the kernel of {NAME} takes {', '.join(DTYPES)}, not {dtype}")
    return f"-DPART={DTYPES[part]}", f"-DFULL={DTYPES[full]}"


def output_shape(shapes: Shapes) -> tuple[Any, ...]:
    """(R, h * w, C), whatever kind of lengths the six inputs' shapes have."""
    return tuple(shapes["residual"])


def grid_length(shapes: Shapes) -> Any:
    """How many blocks the grid has, in integers or symbolic expressions."""
    rows, n, _ = shapes["residual"]
    return (rows * n + (TOKENS - 1)) // TOKENS


def scalars(shapes: Shapes) -> tuple[Any, ...]:
    """The kernel's int32 arguments, between inputs and output: R, m, C, h, hc, w, wc."""
    rows, _, width = shapes["residual"]
    return (rows, shapes["kept"][1], width, *shapes["row_matrix"], *shapes["column_matrix"])


def geometry(shapes: Shapes) -> tuple[Extent, Extent, tuple[int, ...]]:
    """Grid, block and scalars of a launch for inputs of these shapes.

    Raises :class:`ScatterRestoreError` for shapes that do not fit, or are too large for the kernel's 32-bit counts.
    """
    check_shapes(shapes)
    rows, n, _ = shapes["residual"]
    empty = [name for name in INPUTS if 0 in tuple(shapes[name])]
    if empty:
        raise ScatterRestoreError(f"{NAME} was given nothing to do: {empty[0]} has shape {tuple(shapes[empty[0]])}")
    if rows * n > 2**31 - TOKENS:
        raise ScatterRestoreError(f"{NAME} counts tokens in 32 bits and was given {rows} rows of {n}; split the batch")
    return (grid_length(shapes), 1, 1), (LANES, TOKENS, 1), scalars(shapes)


def launch(shapes: Shapes, addresses: Mapping[str, int]) -> Launch:
    """The launch for contiguous inputs and a ``result`` at ``addresses``, which may be aligned for one value only."""
    grid, block, lengths = geometry(shapes)
    missing = {*INPUTS, "result"} - set(addresses)
    if missing:
        raise ScatterRestoreError(f"{NAME} needs the addresses of {sorted(missing)} too")
    arguments: list[np.generic] = [np.uint64(addresses[name]) for name in INPUTS]
    arguments += [np.int32(length) for length in lengths]
    return Launch(KERNEL, grid, block, (*arguments, np.uint64(addresses["result"])))
