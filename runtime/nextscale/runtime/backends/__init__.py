"""Backends by name: what executes the graphs of a bundle."""

from __future__ import annotations

from collections.abc import Callable

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.base import Backend

__all__ = ["BACKENDS", "Backend", "make_backend"]


def _onnxruntime(device: str | None, threads: int | None) -> Backend:
    from nextscale.runtime.backends.onnxruntime import OnnxRuntime
    from nextscale.runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda

    if isinstance(device, str) and device.startswith("cuda"):
        return OnnxRuntimeCuda(device)
    return OnnxRuntime("cpu" if device is None else device, threads)


def _tensorrt(device: str | None, _: int | None) -> Backend:
    from nextscale.runtime.backends.tensorrt.execute import TensorRT

    return TensorRT("cuda" if device is None else device)


def _tensorrt_rtx(device: str | None, _: int | None) -> Backend:
    from nextscale.runtime.backends.tensorrt.execute import TensorRTRTX

    return TensorRTRTX("cuda" if device is None else device)


BACKENDS: dict[str, Callable[[str | None, int | None], Backend]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}


def make_backend(name: str, device: str | None = None, threads: int | None = None) -> Backend:
    """The backend of that name on that device (None: its own); its packages are imported here and not before.

    ``device`` is ``cpu``, ``cuda`` or ``cuda:1``. ``threads`` are those of a pass on the CPU (not on a
    GPU).
    Raises :class:`~nextscale.plan.errors.InputError` for a name that is none,
    :class:`~nextscale.runtime.errors.BackendError` where something that it needs is not installed.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise InputError(f"backend {name!r} is none of {', '.join(sorted(BACKENDS))}")
    return BACKENDS[name](device, threads)
