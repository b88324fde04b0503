"""CUDA: the one module that calls it. Through cuda-core, and through cuda.bindings' driver for what that lacks.

    device = open_device(0)                        # its primary context: the one that PyTorch and CuPy use
    stream = device.stream()                       # an order of work
    block = device.allocate(size)                  # one piece of device memory; device.pin(size) for the host's
    stream.upload(block.address, source, size)
    with stream.capture() as captured:             # or record what is asked for between here ...
        stream.launch(kernel, grid, block, arguments)
    captured.graph.launch(stream)                  # ... and ask for all of it at once

Every call goes through :func:`~nextscale.runtime.backends.checks.checked`. Whatever context a caller's thread has, work
here runs in the primary one, and the thread gets its own back. Both packages are imported when a device is opened.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.blocks import Block, Pointer
from nextscale.runtime.backends.checks import checked
from nextscale.runtime.errors import BackendError

log = logging.getLogger("nextscale.runtime")


@cache
def _core() -> ModuleType:
    return _import("cuda.core")


@cache
def _driver() -> ModuleType:
    return _import("cuda.bindings.driver")


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise BackendError(
            f"CUDA needs the package cuda-core, and {name} does not import here ({error}): "
            "pip install 'nextscale[cuda]', or 'nextscale[tensorrt]' or 'nextscale[rtx]'"
        ) from error


def versions() -> dict[str, str]:
    """Versions of what this module calls CUDA with."""
    return {"cuda-core": str(_core().__version__), "cuda-bindings": str(import_module("cuda.bindings").__version__)}


def open_device(ordinal: int = 0) -> Device:
    """The GPU of that number. Raises :class:`BackendError` where there is no driver, no GPU, or no cuda-core."""
    if type(ordinal) is not int or ordinal < 0:
        raise InputError(f"a CUDA device is a whole number from 0 on; found {ordinal!r}")
    driver, core = _driver(), _core()
    checked("start", driver.cuInit, 0)
    found = checked("find a GPU", driver.cuDeviceGet, ordinal)
    # Held for good: a thread's own hold on it, as cuda-core's, ends with the thread.
    primary = checked("make a context", driver.cuDevicePrimaryCtxRetain, found)
    version = checked("tell its version", driver.cuDriverGetVersion)
    device = Device(ordinal, primary, driver=f"{version // 1000}.{version % 1000 // 10}")
    with device.current():
        seen = checked("look at the GPU", core.Device, ordinal)
        device.name = str(checked("look at the GPU", lambda: seen.name))
        device.sm = "sm" + str(checked("look at the GPU", lambda: seen.arch))
    return device


class Device:
    """A GPU, in its primary context. ``sm`` is ``sm86`` and the like, ``driver`` the CUDA version that it serves."""

    def __init__(self, ordinal: int, primary: Any, driver: str) -> None:
        self.ordinal, self.driver, self.name, self.sm = ordinal, driver, "", ""
        self._primary = primary

    @contextmanager
    def current(self) -> Iterator[None]:
        """The primary context in this thread, whatever it had; that comes back at the end."""
        driver = _driver()
        before = checked("tell its context", driver.cuCtxGetCurrent)
        if int(before) == int(self._primary):
            yield
            return
        checked("change its context", driver.cuCtxSetCurrent, self._primary)
        try:
            yield
        finally:
            checked("change its context", driver.cuCtxSetCurrent, before)

    def memory_info(self) -> tuple[int, int]:
        """Free bytes and all bytes of the device."""
        with self.current():
            free, total = checked("tell its memory", _driver().cuMemGetInfo)
        return int(free), int(total)

    def allocate(self, size: int) -> Block:
        """``size`` bytes of the device, aligned to 256 or more, in one block."""
        try:
            with self.current():
                address = int(checked(f"take {size:,} bytes", _driver().cuMemAlloc, max(size, 1)))
        except BackendError as error:
            free, total = self.memory_info()
            raise BackendError(f"{error} ({free:,} of {total:,} bytes are free on {self.name})") from error
        return Block(address, size, self._release("cuMemFree"))

    def pin(self, size: int) -> Block:
        """``size`` bytes of the host that copies reach without a detour."""
        driver = _driver()
        with self.current():
            what = f"pin {size:,} bytes of the host"
            address = int(checked(what, driver.cuMemHostAlloc, max(size, 1), driver.CU_MEMHOSTALLOC_PORTABLE))
        return Block(address, size, self._release("cuMemFreeHost"))

    def _release(self, function: str) -> Callable[[int], None]:
        def release(address: int) -> None:
            try:
                with self.current(), _relaxed():
                    checked("give memory back", getattr(_driver(), function), address)
            except BackendError as error:  # of a device that is lost
                log.warning("%s", error)

        return release

    def stream(self) -> Stream:
        """A new order of work, which waits for no other."""
        core = _core()
        with self.current():
            here = checked("look at the GPU", core.Device, self.ordinal)
            checked("change its context", here.set_current)  # cuda-core's own state of this thread
            return Stream(self, checked("make a stream", here.create_stream))

    def kernels(self, ptx: bytes, name: str) -> Callable[[str], Any]:
        """Load PTX: a function from a kernel's name to what :meth:`Stream.launch` takes."""
        with self.current():
            code = checked(f"load {name}", _core().ObjectCode.from_ptx, ptx, name=name)

        def kernel(function: str) -> Any:
            with self.current():
                return checked(f"load {function} of {name}", code.get_kernel, function)

        return kernel

    def look(self, array: object, stream: Stream) -> Any:
        """A caller's array by DLPack or ``__cuda_array_interface__``, as cuda-core's StridedMemoryView.

        ``stream`` waits for what the caller's stream has yet to do to it.
        """
        view = _core().utils.StridedMemoryView
        with self.current():
            return checked("take this array", view.from_any_interface, array, stream.handle)

    def strided(self, address: int, shape: tuple[int, ...], dtype: Any, owner: object) -> Any:
        """Device memory that ``owner`` keeps, as a StridedMemoryView, which speaks DLPack."""
        core = _core()
        with self.current():
            size = prod(shape) * dtype.itemsize
            buffer = checked("share memory", core.Buffer.from_handle, address, size, owner=owner)
            return checked("share memory", core.utils.StridedMemoryView.from_buffer, buffer, shape, dtype=dtype)

    def pointer(self, address: int) -> Pointer:
        """What is at an address: whose memory, and in which context."""
        driver = _driver()
        about = driver.CUpointer_attribute

        def ask(attribute: Any) -> Any:
            try:
                return checked("look at an address", driver.cuPointerGetAttribute, attribute, address)
            except BackendError as error:
                if "CUDA_ERROR_INVALID_VALUE" not in str(error):
                    raise
                return None  # CUDA does not know the address

        with self.current():
            kind = ask(about.CU_POINTER_ATTRIBUTE_MEMORY_TYPE)
            if not kind:
                return Pointer("unknown", -1, False)
            managed = ask(about.CU_POINTER_ATTRIBUTE_IS_MANAGED)
            on_device = int(kind) == int(driver.CUmemorytype.CU_MEMORYTYPE_DEVICE)
            context = ask(about.CU_POINTER_ATTRIBUTE_CONTEXT)  # none for memory of a pool, which any context reaches
            ordinal = ask(about.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL)
        foreign = bool(context) and int(context) not in (0, int(self._primary))
        memory = "managed" if managed else "device" if on_device else "host"
        return Pointer(memory, -1 if ordinal is None else int(ordinal), foreign)


@contextmanager
def _relaxed() -> Iterator[None]:
    """Allow what a capture forbids its thread: Python's collector may give memory back at any moment."""
    driver = _driver()
    relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = checked("relax captures", driver.cuThreadExchangeStreamCaptureMode, relaxed)
    try:
        yield
    finally:
        checked("relax captures no more", driver.cuThreadExchangeStreamCaptureMode, before)


class Stream:
    """An order of work on a device. Everything here but :meth:`wait` returns before the work is done."""

    def __init__(self, device: Device, stream: Any) -> None:
        self.device, self._stream = device, stream
        self.handle = int(stream.handle)  # the address of a CUstream

    def upload(self, address: int, source: int, size: int) -> None:
        """Copy from the host's pinned memory."""
        self._ask("copy to the device", _driver().cuMemcpyHtoDAsync, address, source, size)

    def download(self, target: int, address: int, size: int) -> None:
        """Copy to the host's pinned memory."""
        self._ask("copy from the device", _driver().cuMemcpyDtoHAsync, target, address, size)

    def copy(self, target: int, address: int, size: int) -> None:
        """Copy within the device."""
        self._ask("copy on the device", _driver().cuMemcpyDtoDAsync, target, address, size)

    def zero(self, address: int, size: int) -> None:
        """Fill device memory with zeros."""
        self._ask("clear memory", _driver().cuMemsetD8Async, address, 0, size)

    def launch(self, kernel: Any, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any]) -> None:
        """Run a kernel. Its arguments are numpy scalars of the very types that it takes; addresses are uint64."""
        core = _core()
        with self.device.current():
            config = checked("set a launch", core.LaunchConfig, grid=grid, block=block)
            checked("launch a kernel", core.launch, self._stream, config, kernel, *arguments)

    def mark(self) -> Any:
        """A point in this order of work, for :meth:`seconds`."""
        with self.device.current():
            return checked("record an event", self._stream.record, options={"timing_enabled": True})

    def seconds(self, first: Any, last: Any) -> float:
        """What the device spent between two marks; waits for them."""
        with self.device.current():
            checked("wait for an event", last.sync)
            return float(checked("compare events", lambda: last - first)) * 1e-3

    def wait(self) -> None:
        """Return when all that was asked for is done. Raises where some of it failed."""
        with self.device.current():
            checked("finish what it was asked for", self._stream.sync)

    @contextmanager
    def capture(self) -> Iterator[Captured]:
        """Record, instead of running, what is asked for within; the result has its graph afterwards."""
        captured = Captured()
        with self.device.current():
            builder = checked("begin a capture", self._stream.create_graph_builder)
            checked("begin a capture", builder.begin_building, "thread_local")
            try:
                yield captured
                checked("end a capture", builder.end_building)
                graph = checked("instantiate a graph", builder.complete)
                builder.close()
                checked("upload a graph", graph.upload, self._stream)
            except BaseException:  # the stream has to be of use again; this error is the one to tell
                with suppress(BackendError):
                    checked("end a capture", builder.close)
                self.abandon_capture()
                raise
            captured.graph = Captured.Graph(graph)

    def abandon_capture(self) -> None:
        """End a capture that was begun in this thread and could not be brought to its end; none is fine."""
        driver = _driver()
        with suppress(BackendError):  # it says that the capture was invalid, and the stream is out of it
            status = self._ask("look at a stream", driver.cuStreamIsCapturing)
            if int(status) != int(driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE):
                self._ask("end a capture", driver.cuStreamEndCapture)

    def _ask(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        with self.device.current():
            return checked(what, function, *arguments, self._stream.handle)


class Captured:
    """What :meth:`Stream.capture` recorded."""

    class Graph:
        """An instantiated CUDA graph: launched as often as wanted, with the addresses that were captured."""

        def __init__(self, graph: Any) -> None:
            self._graph = graph

        def launch(self, stream: Stream) -> None:
            """Ask for all of it, in the order of ``stream``."""
            with stream.device.current():
                checked("launch a graph", self._graph.launch, stream._stream)

    graph: Graph | None = None
