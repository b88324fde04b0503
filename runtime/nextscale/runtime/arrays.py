"""Arrays of other libraries, without copies: a caller's own as a place to write, a slot's as what they can read.

What a caller gives is read by DLPack or ``__cuda_array_interface__`` (torch, CuPy, pycuda, Numba, JAX, numpy); what is
given out speaks both. On the host these are numpy's own arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.base import Memory
from nextscale.runtime.backends.cuda import Device
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.errors import BackendError

_HOST = (1, 3, 11)  # DLPack's device types: the CPU, and memory of the host that CUDA or ROCm pinned
_CUDA = 2


@dataclass(frozen=True)
class Lent:
    """A caller's array: where its contiguous data lies. ``owner`` keeps it alive."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    owner: object


def borrow(
    array: object, what: str, shape: tuple[int, ...], dtype: str, memory: Memory, *, writes: bool = True
) -> Lent:
    """A caller's array, as a place that graphs on ``memory``'s device read or (``writes``) write.

    It must have that shape and dtype, be contiguous in C order, and lie where the graphs run: on the host, or on that
    very GPU in its primary context. What its own stream has yet to do to it comes before what is asked for next.
    ``what`` names it in messages. Raises :class:`~nextscale.plan.errors.InputError`.
    """
    found = _on_device(array, what, memory) if isinstance(memory, DeviceMemory) else _on_host(array, what)
    if found.shape != shape or found.dtype != np.dtype(dtype):
        raise InputError(f"{what} is {dtype} of shape {shape}; found {found.dtype} of shape {found.shape}")
    if not found.contiguous:
        raise InputError(f"{what} must be contiguous in C order; found strides that are not: give it a copy")
    if writes and found.readonly:
        raise InputError(f"{what} is read-only: give an array that can be written")
    return Lent(found.address, shape, dtype, array)


def array_of(memory: Memory, offset: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any] | DeviceArray:
    """The bytes of a slot as an array: numpy's on the host, a :class:`DeviceArray` on a device.

    It is the slot's own memory, whose work is done: it changes with the next, and lives as long as the array.
    ``bfloat16`` is given as its 16 bits (uint16).
    """
    if not isinstance(memory, DeviceMemory):
        return memory.view(offset, shape, dtype)
    kind = np.dtype("uint16" if dtype == "bfloat16" else dtype)
    return DeviceArray(memory.device, memory.address + offset, shape, kind, memory.block)


class DeviceArray:
    """An array on a CUDA device that torch, CuPy, Numba and JAX take as it is (``torch.as_tensor``, ``cupy.asarray``,
    ``from_dlpack``), and pycuda by its address.

    Nobody needs to wait for what it holds, which was done when it was given out. Who reads it in a stream waits for
    that before asking for what writes it next.
    """

    def __init__(
        self, device: Device, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object
    ) -> None:
        self.device, self.address, self.shape, self.dtype = device, address, shape, dtype
        self._owner = owner

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,  # contiguous in C order
            "stream": None,  # nothing to wait for
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.device.ordinal

    def __dlpack__(self, **options: Any) -> Any:
        view = self.device.strided(self.address, self.shape, self.dtype, owner=self)
        return view.__dlpack__(**options)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "this array is on a CUDA device, where numpy cannot read it: take it with torch.as_tensor, cupy.asarray or "
            "from_dlpack, and copy it to the host there"
        )

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}, {self.shape}, cuda:{self.device.ordinal})"


@dataclass(frozen=True)
class _Found:
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    contiguous: bool
    readonly: bool


def _on_host(array: object, what: str) -> _Found:
    kind = _device_type(array)
    if kind is not None and kind not in _HOST:
        raise InputError(f"{what} lies on a device, and this pipeline runs on the host: give an array of the host")
    try:
        seen = array if isinstance(array, np.ndarray) else _writable(array, np.from_dlpack(array))  # type: ignore[arg-type]
    except (AttributeError, TypeError, BufferError, RuntimeError, ValueError) as error:
        raise InputError(f"{what}: {type(array).__name__} is no array that can be shared ({error})") from error
    return _Found(int(seen.ctypes.data), seen.shape, seen.dtype, seen.flags.c_contiguous, not seen.flags.writeable)


def _writable(array: object, seen: NDArray[Any]) -> NDArray[Any]:
    """The same bytes as numpy's other protocol shows them: DLPack before version 1 cannot say that it may write."""
    if seen.flags.writeable or not hasattr(array, "__array__"):
        return seen
    other = np.asarray(array)
    same = (other.ctypes.data, other.shape, other.strides) == (seen.ctypes.data, seen.shape, seen.strides)
    return other if same else seen


def _on_device(array: object, what: str, memory: DeviceMemory) -> _Found:
    device = memory.device
    kind = _device_type(array)
    if isinstance(array, np.ndarray) or kind in _HOST:
        raise InputError(
            f"{what} lies on the host, and this pipeline runs on cuda:{device.ordinal}: give an array of that device, "
            f'as torch.empty(..., device="cuda:{device.ordinal}") or cupy.empty(...) make one'
        )
    if kind is None and not hasattr(array, "__cuda_array_interface__"):
        raise InputError(f"{what}: {type(array).__name__} has neither DLPack nor __cuda_array_interface__")
    try:
        seen = device.look(array, memory.stream)
        shape, dtype = tuple(seen.shape), np.dtype(seen.dtype)
    except (BackendError, NotImplementedError, TypeError) as error:  # types that numpy does not have, too
        raise InputError(f"{what}: {type(array).__name__} is no array that can be shared ({error})") from error
    address = int(seen.ptr)
    if prod(shape):
        _check_place(device, address, what)
    return _Found(address, shape, dtype, _contiguous(shape, seen.strides), bool(seen.readonly))


def _check_place(device: Device, address: int, what: str) -> None:
    """Refuse memory that graphs on the device cannot reach."""
    at = device.pointer(address)
    if at.foreign:
        raise InputError(
            f"{what} was allocated in another CUDA context than the primary one, which PyTorch, CuPy and Nextscale "
            "share: with pycuda, import pycuda.autoprimaryctx instead of pycuda.autoinit"
        )
    if at.memory not in ("device", "managed"):
        raise InputError(f"{what} is {at.memory} memory at {address:#x}, not the device's: is it still alive?")
    if at.memory == "device" and at.ordinal != device.ordinal:
        raise InputError(f"{what} lies on cuda:{at.ordinal}, and this pipeline runs on cuda:{device.ordinal}")


def _device_type(array: object) -> int | None:
    """DLPack's number of the kind of device, where an array tells it."""
    tell = getattr(array, "__dlpack_device__", None)
    try:
        return None if tell is None else int(tell()[0])
    except (ValueError, TypeError, RuntimeError, BufferError) as error:
        raise InputError(f"{type(array).__name__} is no array that can be shared ({error})") from error


def _contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None) -> bool:
    """Whether strides, in items, are those of C order; axes of length 1 may have any."""
    if strides is None:
        return True
    step = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != step:
            return False
        step *= length
    return True
