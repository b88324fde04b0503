"""The real cuda-core, cuda.bindings and ``nextscale.runtime.backends.cuda`` over a driver library of host memory.

``host_driver.cpp`` is that library. This is a program: `python -m support.host_driver LIBRARY BUNDLE`, run by a test in
a process of its own, since a process has one driver. It ends with status 0 where everything held. It shows that our
calls are what those packages take, in an order that they accept; what a GPU makes of it, only a GPU shows.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.host_kernels import KERNELS
from support.host_tensorrt import HostTensorRT, write_target

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline
from nextscale.runtime.arrays import array_of, borrow
from nextscale.runtime.backends import cuda, kernels
from nextscale.runtime.backends.base import Bound
from nextscale.runtime.backends.blocks import Pointer
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.resident import record
from nextscale.runtime.backends.tensorrt.execute import TensorRT
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.noise import step_uniforms

HOST, DEVICE = 1, 2
NO, PRIMARY, FOREIGN = 0, 1, 2  # contexts
WORDS = {"uniforms": (np.uint64,) * 3 + (np.int64, np.uint64), "flag_nonfinite": (np.uint64, np.int64, np.uint64)}
_LAUNCH = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_void_p))
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_int)


@_LAUNCH
def launch(name: bytes, sizes: Any, arguments: Any) -> None:
    """A kernel in numpy, with what cuda-core packed for it."""
    kinds = WORDS[name.decode()]
    given = [np.frombuffer(ctypes.string_at(arguments[i], 8), kind)[0] for i, kind in enumerate(kinds)]
    KERNELS[name.decode()](tuple(sizes[:3]), tuple(sizes[3:6]), *given)


class Bridge:
    """The driver as the double of TensorRT wants a device: contexts, streams and addresses are asked of it."""

    sm = "sm86"

    def __init__(self, driver: ctypes.CDLL) -> None:
        self.driver, self.work = driver, list[Callable[[], None]]()
        self.run = _WORK(lambda number: self.work[number]())
        self.blocks = self

    @property
    def depth(self) -> bool:
        return bool(self.driver.host_current() == PRIMARY)

    @property
    def streams(self) -> Bridge:
        return self

    def __contains__(self, _: object) -> bool:
        return True

    def __getitem__(self, address: int) -> Any:
        """A stream by its handle; a block by its address, of which the double writes a part."""
        if self.driver.host_kind(ctypes.c_void_p(address)):
            return SimpleNamespace(raw=np.frombuffer((ctypes.c_uint8 * 2**16).from_address(address), np.uint8))
        stream = ctypes.c_void_p(address)

        def ask(_: object, operation: Callable[[], None]) -> None:
            self.work.append(operation)
            assert self.driver.host_ask(stream, self.run, len(self.work) - 1) == 0

        recording = [] if self.driver.host_recording(stream) else None
        return SimpleNamespace(recording=recording, ask=ask)

    def check(self, kind: str, address: int, _: int) -> None:
        found = self.driver.host_kind(ctypes.c_void_p(address))
        assert found == (DEVICE if kind == "device" else HOST), f"{address:#x} is of kind {found}, not {kind} memory"


def noise_and_graphs(driver: ctypes.CDLL, device: cuda.Device) -> None:
    """Kernels with the arguments that they were launched with; a graph reads what is there when it runs."""
    memory, chain = DeviceMemory(device, 4096), kernels.ChainKernels(device)
    keys = Bound("keys", "int64", (2, 2), memory.address)
    out = Bound("noise.in", "float32", (2, 30), memory.address + 1024)
    call = chain.uniforms(memory.stream, keys, out, 3, 1)
    run: list[Any] = [call, record(memory.stream, [call, call])]
    for seed, asked in enumerate(run):
        memory.view(0, (2, 2), "int64")[...] = [(seed, 9), (seed, 10)]
        memory.push(0, 1024)
        asked.execute()
        memory.pull(1024, 240)
        assert np.array_equal(memory.view(1024, (2, 30), "float32"), step_uniforms(seed, (9, 10), 3, 1, (30,)))
    first = memory.stream.mark()
    memory.copy(0, 8, memory.address + 128)
    assert memory.stream.seconds(first, memory.stream.mark()) == pytest.approx(0.001)

    class Fails:
        def execute(self) -> None:
            raise BackendError("refused")

    with pytest.raises(BackendError, match="refused"):
        record(memory.stream, [call, Fails()])
    call.execute()  # the stream is out of the capture
    memory.wait()

    class Frees:
        def __init__(self, free: Callable[[], object]) -> None:
            self.execute = free

    block = device.allocate(64)
    address = ctypes.c_uint64(block.address)
    with pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        record(memory.stream, [call, Frees(lambda: driver.cuMemFree(address))])  # as CUDA has it
    call.execute()
    memory.wait()
    held = [block, device.allocate(64), device.pin(64)]
    del block
    record(memory.stream, [call, Frees(held.clear), call]).execute()  # what the collector may do at any moment
    memory.wait()
    driver.host_fail_wait(700)
    with pytest.raises(BackendError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*start the process again"):
        memory.wait()


def contexts_and_memory(driver: ctypes.CDLL, device: cuda.Device) -> None:
    """Whatever context a thread has, it has it afterwards; work is done in the primary one."""
    memory = DeviceMemory(device, 1024)
    seen = []

    def work(foreign: int) -> None:
        driver.host_foreign(foreign)
        memory.push(0, 64)
        memory.pull(0, 64)
        device.stream().wait()
        seen.append(driver.host_current())

    for foreign in (0, 1):
        thread = threading.Thread(target=work, args=(foreign,))
        thread.start()
        thread.join()
    assert seen == [NO, FOREIGN]
    assert device.pointer(memory.address + 7) == Pointer("device", 0, False)
    assert device.pointer(12345) == Pointer("unknown", -1, False)
    with pytest.raises(BackendError, match=r"CUDA_ERROR_OUT_OF_MEMORY.*fewer slots.*bytes are free on Host driver"):
        device.allocate(2**30)
    with pytest.raises(BackendError, match=r"load none of chain: .*"):
        device.kernels(kernels._ptx(), "chain")("none")


def arrays(driver: ctypes.CDLL, device: cuda.Device) -> None:
    """Both protocols, by cuda-core's own view; memory of another context by its remedy."""
    memory = DeviceMemory(device, 1024)
    ours = array_of(memory, 256, (2, 3), "float32")
    interface = ours.__cuda_array_interface__  # type: ignore[union-attr]
    for told in (interface, {**interface, "stream": memory.stream.handle}):
        theirs = SimpleNamespace(__cuda_array_interface__=told)
        assert borrow(theirs, "out", (2, 3), "float32", memory).address == memory.address + 256
    assert borrow(ours, "out", (2, 3), "float32", memory).address == memory.address + 256  # by DLPack
    assert "dltensor" in repr(ours.__dlpack__(stream=memory.stream.handle, max_version=(1, 0)))
    address = ctypes.c_uint64()
    driver.host_foreign(1)
    assert driver.cuMemAlloc(ctypes.byref(address), ctypes.c_size_t(256)) == 0
    driver.host_foreign(0)
    theirs = SimpleNamespace(__cuda_array_interface__={**interface, "data": (address.value, False)})
    with pytest.raises(InputError, match=r"import pycuda\.autoprimaryctx instead of pycuda\.autoinit"):
        borrow(theirs, "out", (2, 3), "float32", memory)


def pictures(driver: ctypes.CDLL, folder: Path) -> None:
    """A whole pipeline: run, captured, replayed, streamed."""
    bundle, bridge = open_bundle(folder), Bridge(driver)
    library = HostTensorRT(bridge, {"step_02": 5000})  # type: ignore[arg-type]
    write_target(bundle, library, batch_sizes=(1, 2))
    with (
        Pipeline.open(folder, threads=1) as reference,
        Pipeline.open(folder, TensorRT(load_library=library.load)) as ours,
    ):
        for seed in range(3):
            made, wanted = (p.generate([0, 1, None], seed=seed) for p in (ours, reference))
            assert np.array_equal(made.floats, wanted.floats)
            assert all(map(np.array_equal, made.tokens, wanted.tokens))
            steps = [step.tokens for step in ours.stream([2], seed=seed)]
            assert all(map(np.array_equal, steps, reference.generate([2], seed=seed).tokens))


def main(library: str, bundle: str) -> None:
    """Everything, and at the end no memory is held."""
    kernels._ptx()  # NVRTC looks for a driver by itself, and this one is not what it expects
    driver = ctypes.CDLL(library)
    driver.host_launch(launch)
    device = cuda.open_device(0)
    assert (device.name, device.sm, device.driver, driver.host_current()) == ("Host driver", "sm86", "13.0", NO)
    for check in (noise_and_graphs, contexts_and_memory, arrays):
        check(driver, device)
        gc.collect()
        assert driver.host_blocks(DEVICE) == (1 if check is arrays else 0), check  # the foreign one
    pictures(driver, Path(bundle))
    gc.collect()
    assert driver.host_blocks(DEVICE) == 1
    assert driver.host_blocks(HOST) == 0


if __name__ == "__main__":
    main(*sys.argv[1:])
