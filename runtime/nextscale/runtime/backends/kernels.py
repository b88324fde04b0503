"""The chain's own kernels on a device: compiled once per device, launched on a slot's stream."""

from __future__ import annotations

from functools import cache
from math import prod

from nextscale.plugins.kernel import Launch
from nextscale.runtime.backends.base import Bound
from nextscale.runtime.backends.cuda import Device, Stream
from nextscale.runtime.backends.nvrtc import compile_ptx
from nextscale.runtime.kernels import chain

ARCHITECTURE = "compute_75"  # the oldest that TensorRT for RTX serves


class ChainKernels:
    """Noise and looks for NaN, as calls."""

    def __init__(self, device: Device) -> None:
        load = device.kernels(_ptx(), chain.FILE)
        self._loaded = {name: load(name) for name in chain.KERNELS}

    def uniforms(self, on: Stream, keys: Bound, out: Bound, step: int, stream: int) -> KernelCall:
        """``out`` (images, ...) float32 of stream number ``stream`` of the noise, for ``keys`` (images, 2) int64."""
        images, *shape = out.shape
        return self._call(on, chain.uniforms(keys.address, out.address, images, prod(shape), step, stream))

    def flag_nonfinite(self, on: Stream, values: Bound, flags: Bound) -> KernelCall:
        """``flags`` (images,) int32 of ``values`` (images, ...) float32."""
        images, *shape = values.shape
        return self._call(on, chain.flag_nonfinite(values.address, flags.address, images, prod(shape)))

    def _call(self, stream: Stream, launch: Launch) -> KernelCall:
        return KernelCall(stream, self._loaded[launch.kernel], launch)


class KernelCall:
    """A kernel with its arguments."""

    def __init__(self, stream: Stream, kernel: object, launch: Launch) -> None:
        self._stream, self._kernel, self._launch = stream, kernel, launch

    def execute(self) -> None:
        """Ask for it."""
        self._stream.launch(self._kernel, self._launch.grid, self._launch.block, self._launch.arguments)


@cache
def _ptx() -> bytes:
    return compile_ptx(chain.source(), chain.FILE, ARCHITECTURE)
