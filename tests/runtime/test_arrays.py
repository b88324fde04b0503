"""Other libraries' arrays without copies: on the host for real, on a device by the double's word for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.host_cuda import HostDevice

from nextscale.plan.errors import InputError
from nextscale.runtime.arrays import DeviceArray, array_of, borrow
from nextscale.runtime.backends.base import Memory
from nextscale.runtime.backends.blocks import Pointer
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.host import HostMemory
from nextscale.runtime.errors import BackendError

SHAPE = (2, 3)
HOST = HostMemory(64)


class Cuda:
    """What torch, CuPy and pycuda give: an array by ``__cuda_array_interface__``, here over the host's memory."""

    def __init__(self, array: np.ndarray[Any, Any], **changed: Any) -> None:
        self.array = array
        interface = array.__array_interface__
        strides = None if array.flags.c_contiguous else array.strides
        taken = {key: interface[key] for key in ("shape", "typestr", "data")}
        self.__cuda_array_interface__ = {**taken, "strides": strides, "version": 3, **changed}


@pytest.fixture
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture
def memory(device: HostDevice) -> Memory:
    return DeviceMemory(device, 4096)  # type: ignore[arg-type]


def lent(device: HostDevice, array: np.ndarray[Any, Any], **changed: Any) -> Cuda:
    device.lend(array)
    return Cuda(array, **changed)


# --- on the host -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_arrays_of_the_host_are_taken_where_they_lie(dtype: str) -> None:
    ours = np.zeros(SHAPE, dtype)
    theirs = torch.zeros(SHAPE, dtype=getattr(torch, dtype))
    assert borrow(ours, "out", SHAPE, dtype, HOST).address == ours.ctypes.data
    assert borrow(theirs, "out", SHAPE, dtype, HOST).address == theirs.data_ptr()


def test_an_array_that_shows_itself_read_only_in_one_protocol() -> None:
    """Before DLPack 1.0 no array could say that it may be written."""

    class Old:
        def __init__(self) -> None:
            self.array = np.zeros(SHAPE, np.float32)

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **_: Any) -> Any:
            return self.array.__dlpack__()  # no version is asked for: an unversioned capsule

        def __array__(self, *_: Any, **__: Any) -> Any:
            return self.array

    old = Old()
    assert borrow(old, "out", SHAPE, "float32", HOST).address == old.array.ctypes.data


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 2), np.float32), r"out is float32 of shape \(2, 3\); found float32 of shape \(3, 2\)"),
        (np.zeros(SHAPE), "found float64"),
        (np.zeros(SHAPE, ">f4"), "found >f4"),
        (np.zeros((3, 2), np.float32).T, "must be contiguous"),
        (torch.zeros(4, 3)[::2], "must be contiguous"),
        (np.broadcast_to(np.float32(0), SHAPE), "must be contiguous"),
        (np.frombuffer(bytes(24), np.float32).reshape(SHAPE), "out is read-only"),
        (torch.zeros(SHAPE, requires_grad=True), "Tensor is no array that can be shared"),
        (torch.zeros(SHAPE, device="meta"), "Tensor is no array that can be shared"),
        (torch.zeros(SHAPE, dtype=torch.bfloat16), "out"),
        ([[0.0] * 3] * 2, "list is no array that can be shared"),
        (None, "NoneType is no array that can be shared"),
        (7, "int is no array that can be shared"),
    ],
)
def test_arrays_of_the_host_that_are_refused(array: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        borrow(array, "out", SHAPE, "float32", HOST)


def test_what_is_only_read_may_be_read_only() -> None:
    array = np.frombuffer(bytes(24), np.float32).reshape(SHAPE)
    assert borrow(array, "code_sum", SHAPE, "float32", HOST, writes=False).address == array.ctypes.data


def test_the_hosts_memory_gives_numpy_arrays() -> None:
    array = array_of(HOST, 16, SHAPE, "float32")
    assert isinstance(array, np.ndarray)
    array[...] = 3
    assert torch.from_dlpack(array).sum() == 18
    assert HOST.view(16, (6,), "float32").tolist() == [3] * 6


# --- on a device -----------------------------------------------------------------------------------------------------


def test_a_callers_array_on_the_device_is_taken_where_it_lies(device: HostDevice, memory: Memory) -> None:
    array = np.zeros(SHAPE, np.float32)
    found = borrow(lent(device, array), "out", SHAPE, "float32", memory)
    assert (found.address, found.shape, found.dtype) == (array.ctypes.data, SHAPE, "float32")


def test_its_own_stream_comes_first(device: HostDevice, memory: Memory) -> None:
    """cuda-core lets our stream wait for the caller's; the double writes down that it was asked to."""
    array = np.zeros(SHAPE, np.float32)
    borrow(lent(device, array, stream=0x77), "out", SHAPE, "float32", memory)
    assert device.log[-1] == ("look", memory.stream.handle)  # type: ignore[attr-defined]


def test_arrays_of_the_host_are_refused_on_a_device(memory: Memory) -> None:
    for array in (np.zeros(SHAPE, np.float32), torch.zeros(SHAPE)):
        with pytest.raises(
            InputError, match=r'out lies on the host, .* cuda:0: .*torch\.empty\(\.\.\., device="cuda:0"'
        ):
            borrow(array, "out", SHAPE, "float32", memory)


def test_arrays_of_a_device_are_refused_on_the_host() -> None:
    class OnGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    with pytest.raises(InputError, match="out lies on a device, and this pipeline runs on the host"):
        borrow(OnGpu(), "out", SHAPE, "float32", HOST)
    with pytest.raises(InputError, match="Cuda is no array that can be shared"):
        borrow(Cuda(np.zeros(SHAPE, np.float32)), "out", SHAPE, "float32", HOST)


@pytest.mark.parametrize(
    ("pointer", "reason"),
    [
        (Pointer("device", 0, foreign=True), r"import pycuda\.autoprimaryctx instead of pycuda\.autoinit"),
        (Pointer("device", 1, foreign=False), "out lies on cuda:1, and this pipeline runs on cuda:0"),
        (Pointer("host", 0, foreign=False), "out is host memory at 0x"),
        (Pointer("unknown", -1, foreign=False), "not the device's: is it still alive"),
    ],
)
def test_memory_that_graphs_cannot_reach(device: HostDevice, memory: Memory, pointer: Pointer, reason: str) -> None:
    array = np.zeros(SHAPE, np.float32)
    device.pointers[array.ctypes.data] = pointer
    with pytest.raises(InputError, match=reason):
        borrow(Cuda(array), "out", SHAPE, "float32", memory)


def test_managed_memory_is_everywhere(device: HostDevice, memory: Memory) -> None:
    array = np.zeros(SHAPE, np.float32)
    device.pointers[array.ctypes.data] = Pointer("managed", 1, foreign=False)
    assert borrow(Cuda(array), "out", SHAPE, "float32", memory).address == array.ctypes.data


def test_layouts_of_a_device_that_are_refused(device: HostDevice, memory: Memory) -> None:
    whole = np.zeros((4, 3), np.float32)
    device.lend(whole)
    for array, reason in (
        (Cuda(whole[::2]), "must be contiguous"),
        (Cuda(whole[:2], data=(whole.ctypes.data, True)), "is read-only"),
        (Cuda(whole), r"found float32 of shape \(4, 3\)"),
        (Cuda(whole[:2], typestr="<f2"), "found float16"),
        (object(), "object has neither DLPack nor __cuda_array_interface__"),
    ):
        with pytest.raises(InputError, match=reason):
            borrow(array, "out", SHAPE, "float32", memory)


def test_axes_of_length_one_may_have_any_stride(device: HostDevice, memory: Memory) -> None:
    array = np.zeros((1, 3), np.float32)
    found = borrow(lent(device, array, strides=(4096, 4)), "out", (1, 3), "float32", memory)
    assert found.address == array.ctypes.data


def test_what_cuda_core_cannot_read_is_the_callers_mistake(
    device: HostDevice, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BackendError("CUDA cannot take this array: no protocol")

    monkeypatch.setattr(device, "look", fail)
    with pytest.raises(InputError, match="Cuda is no array that can be shared"):
        borrow(Cuda(np.zeros(SHAPE, np.float32)), "out", SHAPE, "float32", memory)


def test_a_slots_bytes_on_a_device_speak_both_protocols(device: HostDevice, memory: Memory) -> None:
    array = array_of(memory, 256, SHAPE, "float32")
    assert isinstance(array, DeviceArray)
    assert array.__cuda_array_interface__ == {
        "shape": SHAPE,
        "typestr": "<f4",
        "data": (memory.address + 256, False),
        "strides": None,
        "stream": None,
        "version": 3,
    }
    assert array.__dlpack_device__() == (2, 0)
    assert array.nbytes == 24
    taken = array.__dlpack__(stream=1, max_version=(1, 0))
    assert taken == (memory.address + 256, SHAPE, np.dtype("float32"), {"stream": 1, "max_version": (1, 0)})
    assert repr(array) == "DeviceArray(float32, (2, 3), cuda:0)"
    assert array_of(memory, 0, (4,), "bfloat16").dtype == np.uint16


def test_numpy_does_not_take_a_devices_array_for_a_scalar(memory: Memory) -> None:
    with pytest.raises(TypeError, match=r"on a CUDA device, where numpy cannot read it"):
        np.asarray(array_of(memory, 0, SHAPE, "float32"))
