"""Memory that host and graphs share, and what a chain needs beside its graphs, computed by numpy."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime.backends.base import Bound, Call, Loaded, Memory
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import ITEM_SIZES
from nextscale.runtime.noise import fill

ALIGNMENT = 64
SHORT_TEXT = 64  # tokens; what fewer would save is not worth another shape


class HostMemory:
    """One aligned numpy block: a view is the data itself. Untouched pages of it cost nothing.

    ``bfloat16``, which numpy does not have, is seen as its 16 bits (uint16).
    """

    def __init__(self, size: int) -> None:
        try:
            block = np.empty(size + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError, OverflowError) as error:  # more than there is, or than an array can index
            raise BackendError(
                f"no memory for buffers of {size:,} bytes: use fewer slots or smaller batches"
            ) from error
        start = -block.ctypes.data % ALIGNMENT
        self._bytes = block[start : start + size]

    @property
    def address(self) -> int:
        return int(self._bytes.ctypes.data)

    @property
    def size(self) -> int:
        return self._bytes.nbytes

    def view(self, offset: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        return self._bytes[offset : offset + prod(shape) * ITEM_SIZES[dtype]].view(kind).reshape(shape)

    def push(self, offset: int, size: int) -> None:
        pass

    def pull(self, offset: int, size: int) -> None:
        pass

    def copy(self, offset: int, size: int, address: int) -> None:
        ctypes.memmove(address, self.address + offset, size)

    def wait(self) -> None:
        pass


class HostLoaded(Loaded):
    """Graphs that run in the host's memory."""

    def allocate(self, size: int, visible: int) -> HostMemory:
        """Memory that host and graphs share."""
        return HostMemory(size)

    def uniforms(self, memory: Memory, keys: Bound, out: Bound, step: int, stream: int) -> Call:
        pairs, noise = _view(keys), _view(out)
        return HostCall(lambda: fill(noise, [(int(seed), int(image)) for seed, image in pairs], step, stream))

    def flag_nonfinite(self, memory: Memory, values: Bound, flags: Bound) -> Call:
        found, marks = _view(values).reshape(values.shape[0], -1), _view(flags)

        def look() -> None:
            finite = np.isfinite(found)
            if not finite.all():
                marks[~finite.all(axis=1)] = 1

        return HostCall(look)


class HostCall:
    """A function of the host as a call."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def execute(self) -> None:
        """Run it."""
        self._function()


def doubled(longest: int) -> tuple[int, ...]:
    """64, 128, ... tokens up to the longest text: a pass computes with less than twice the tokens that it needs."""
    lengths = [SHORT_TEXT]
    while lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    return (*lengths[:-1], longest)


def _view(bound: Bound) -> NDArray[Any]:
    """The array at an address, which may be a caller's own."""
    size = prod(bound.shape) * ITEM_SIZES[bound.dtype]
    array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(bound.address))
    return array.view(bound.dtype).reshape(bound.shape)
