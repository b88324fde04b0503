"""A CUDA device made of host memory, behind the interface of ``nextscale.runtime.backends.cuda``.

The machines that run these tests have no GPU, so what lies above that module is proven against this double: it can
show that a backend takes its memory once, asks for work in the right order and never waits in between. It cannot show
that CUDA does what it is asked; tests with the marker ``gpu`` do that where there is one.

It is as lazy as a device may be: what is asked of a stream runs when somebody waits for it, and not before. So a
missing wait reads stale bytes, and a host that writes a buffer too early spoils what was asked for. Whoever names an
address that is in no living block of the right kind is caught.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
from support.host_kernels import KERNELS

from nextscale.runtime.backends.blocks import Block, Pointer
from nextscale.runtime.backends.cuda import Captured

Operation = Callable[[], None]
Record = tuple[Any, ...]


class Store:
    """The bytes behind a block."""

    def __init__(self, kind: str, raw: np.ndarray[Any, Any]) -> None:
        self.kind, self.raw, self.address, self.size = kind, raw, int(raw.ctypes.data), raw.nbytes


class HostDevice:
    """A device whose ``log`` tells everything that was asked of it: (what, ...), in order."""

    def __init__(self, total: int = 2**30, sm: str = "sm86", ordinal: int = 0) -> None:
        self.ordinal, self.name, self.sm, self.driver, self.total = ordinal, "Host double", sm, "13.0", total
        self.log: list[Record] = []
        self.blocks: dict[int, Store] = {}
        self.streams: dict[int, HostStream] = {}
        self.pointers: dict[int, Pointer] = {}  # what a test says of addresses of its own
        self.depth = 0
        self._handles = count(0x5000)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Counts, so that the library's double can insist on a context."""
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def memory_info(self) -> tuple[int, int]:
        used = sum(block.size for block in self.blocks.values() if block.kind == "device")
        return self.total - used, self.total

    def allocate(self, size: int) -> Block:
        return self._take("device", size)

    def pin(self, size: int) -> Block:
        return self._take("pinned", size)

    def stream(self) -> HostStream:
        stream = HostStream(self, next(self._handles))
        self.streams[stream.handle] = stream
        self.log.append(("stream",))
        return stream

    def kernels(self, ptx: bytes, name: str) -> Callable[[str], str]:
        assert ptx.startswith(b"//"), "PTX begins with a comment"
        self.log.append(("load", name))
        return lambda function: function

    def look(self, array: Any, stream: HostStream) -> Any:
        """As cuda-core's StridedMemoryView reads ``__cuda_array_interface__``; strides in items."""
        self.log.append(("look", stream.handle))
        told = array.__cuda_array_interface__
        kind, strides = np.dtype(told["typestr"]), told.get("strides")
        address, readonly = told["data"]
        strides = None if strides is None else tuple(stride // kind.itemsize for stride in strides)
        return SimpleNamespace(ptr=address, shape=told["shape"], strides=strides, dtype=kind, readonly=readonly)

    def strided(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> Any:
        """What is asked of a view's DLPack, instead of a capsule."""
        return SimpleNamespace(__dlpack__=lambda **options: (address, shape, dtype, options))

    def pointer(self, address: int) -> Pointer:
        found = self.block(address, 1)
        if address in self.pointers or found is None:
            return self.pointers.get(address, Pointer("unknown", -1, False))
        return Pointer("device" if found.kind == "device" else "host", self.ordinal, False)

    def block(self, address: int, size: int) -> Store | None:
        """The living block that holds those bytes."""
        found = (b for b in self.blocks.values() if b.address <= address and address + size <= b.address + b.size)
        return next(found, None)

    def lend(self, array: np.ndarray[Any, Any]) -> None:
        """Let an array of a test's be memory of this device, as a caller's own would be."""
        self.blocks[int(array.ctypes.data)] = Store("device", array)

    def check(self, kind: str, address: int, size: int) -> None:
        """Catch an address that is not in one living block of that kind."""
        found = self.block(address, size)
        assert found is not None, f"no living block holds {size} bytes at {address:#x}"
        assert found.kind == kind, f"{address:#x} is {found.kind} memory, and {kind} memory is needed"

    def asked(self, *kinds: str) -> list[Record]:
        """The records of those kinds."""
        return [record for record in self.log if record[0] in kinds]

    def _take(self, kind: str, size: int) -> Block:
        self.log.append(("allocate" if kind == "device" else "pin", size))
        raw = np.full(size + 512, 0xAB, np.uint8)  # never zero by luck
        start = -raw.ctypes.data % 256
        store = Store(kind, raw[start : start + size])
        self.blocks[store.address] = store
        return Block(store.address, size, self._free)

    def _free(self, address: int) -> None:
        store = self.blocks.pop(address)
        self.log.append(("free", store.kind, store.size))


class HostStream:
    """Work in order, done when waited for; or recorded, while a capture is open."""

    def __init__(self, device: HostDevice, handle: int) -> None:
        self.device, self.handle = device, handle
        self.recording: list[Operation] | None = None
        self._asked: list[Operation] = []

    def ask(self, record: Record, operation: Operation) -> None:
        """What every request ends in, also those of the library's double."""
        self.device.log.append(record if self.recording is None else ("captured", *record))
        (self._asked if self.recording is None else self.recording).append(operation)

    def upload(self, address: int, source: int, size: int) -> None:
        self.device.check("pinned", source, size)
        self.device.check("device", address, size)
        self.ask(("upload", size), lambda: _move(address, source, size))

    def download(self, target: int, address: int, size: int) -> None:
        self.device.check("pinned", target, size)
        self.device.check("device", address, size)
        self.ask(("download", size), lambda: _move(target, address, size))

    def copy(self, target: int, address: int, size: int) -> None:
        self.device.check("device", target, size)
        self.device.check("device", address, size)
        self.ask(("copy", size), lambda: _move(target, address, size))

    def zero(self, address: int, size: int) -> None:
        self.device.check("device", address, size)
        self.ask(("zero", size), lambda: ctypes.memset(address, 0, size) and None)

    def launch(self, kernel: str, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]) -> None:
        assert all(0 < side < 2**16 or (side < 2**31 and axis == 0) for axis, side in enumerate(grid)), grid
        assert 0 < np.prod(block) <= 1024
        given = tuple(arguments)
        assert all(isinstance(a, np.generic) for a in given), f"no width is known of {given}"
        self.ask(("launch", kernel), lambda: KERNELS[kernel](grid, block, *given))

    def wait(self) -> None:
        assert self.recording is None, "a capture cannot wait"
        self.device.log.append(("wait",))
        while self._asked:
            self._asked.pop(0)()

    def abandon_capture(self) -> None:
        self.device.log.append(("abandon",))

    @contextmanager
    def capture(self) -> Iterator[Captured]:
        assert self.recording is None, "a capture is open already"
        self.device.log.append(("capture",))
        captured, self.recording = Captured(), []
        try:
            yield captured
            captured.graph = HostGraph(self.recording)  # type: ignore[assignment]
        finally:
            self.recording = None


class HostGraph:
    """What was recorded; a launch asks for all of it."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations

    def launch(self, stream: HostStream) -> None:
        def run() -> None:
            for operation in self.operations:
                operation()

        stream.ask(("graph", len(self.operations)), run)


def _move(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)
