"""Host memory: one aligned numpy block. Untouched pages of it cost nothing."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import ITEM_SIZES

ALIGNMENT = 64


class HostMemory:
    """Memory that host and graphs share: a view is the data itself.

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
