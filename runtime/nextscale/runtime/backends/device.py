"""A slot's memory on a CUDA device: one block there, one stream, and the host's pinned view of what it ever sees."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime.backends.base import Bound
from nextscale.runtime.backends.blocks import Block
from nextscale.runtime.backends.cuda import Device
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import ITEM_SIZES


class DeviceMemory:
    """``size`` bytes on a device, zero at first, of which the host sees the first ``visible`` (None: all of them).

    All work on it is asked of its ``stream``, so it runs in the order in which it was asked for. ``scratch`` is a block
    beside it that graphs use while they run. ``bfloat16``, which numpy does not have, is seen as its 16 bits (uint16).
    """

    def __init__(self, device: Device, size: int, visible: int | None = None, scratch: int = 0) -> None:
        self.device, self.stream = device, device.stream()
        self._visible = size if visible is None else min(visible, size)
        self.block: Block | None = device.allocate(size)  # None once closed; who still reads it holds it
        self.address, self.size = self.block.address, self.block.size
        self.scratch: Block | None = device.allocate(scratch) if scratch else None
        self._mirror = host_array(device.pin(self._visible))
        self._mirror[:] = 0
        self.stream.zero(self.address, size)
        self.stream.wait()

    def holds(self, bound: Bound) -> bool:
        """Whether a tensor lies in here, and not in a caller's own memory."""
        end = bound.address + prod(bound.shape) * ITEM_SIZES[bound.dtype]
        return self.address <= bound.address and end <= self.address + self.size

    def view(self, offset: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
        size = prod(shape) * ITEM_SIZES[dtype]
        self._check_visible(offset, size)
        return self._mirror[offset : offset + size].view(kind).reshape(shape)

    def push(self, offset: int, size: int) -> None:
        self._check_visible(offset, size)
        self.stream.upload(self.address + offset, self._host(offset), size)

    def pull(self, offset: int, size: int) -> None:
        self._check_visible(offset, size)
        self.stream.download(self._host(offset), self.address + offset, size)
        self.stream.wait()

    def copy(self, offset: int, size: int, address: int) -> None:
        self.stream.copy(address, self.address + offset, size)

    def wait(self) -> None:
        self.stream.wait()

    def close(self) -> None:
        """Give the device's memory back, the block as soon as nobody else holds it; arrays that :meth:`view` gave out
        stay what they are."""
        with suppress(BackendError):  # of a device that is lost
            self.stream.wait()
        self.block = self.scratch = None

    def _host(self, offset: int) -> int:
        return int(self._mirror.ctypes.data) + offset

    def _check_visible(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self._visible:
            raise BackendError(
                f"bytes {offset:,} to {offset + size:,} of a slot stay on the device: the host sees the first "
                f"{self._visible:,}"
            )


def host_array(block: Block) -> NDArray[np.uint8]:
    """The bytes of a block of the host's memory, which lives as long as any array on it."""
    raw = (ctypes.c_uint8 * block.size).from_address(block.address)
    raw.owner = block  # type: ignore[attr-defined]
    return np.frombuffer(memoryview(raw).cast("B"), np.uint8)
