"""Backends by name: what executes the graphs of a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.base import Backend

__all__ = ["BACKENDS", "Backend", "make_backend"]


def _onnxruntime(device: str | None, threads: int | None, targets: str | None, verify: str) -> Backend:
    from nextscale.runtime.backends.onnxruntime import OnnxRuntime
    from nextscale.runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda

    if isinstance(device, str) and device.startswith("cuda"):
        _refuse_threads(threads)
        if targets is not None:
            raise InputError(
                "targets are of TensorRT and of the CPU: 'onnxruntime' on cuda runs the bundle's own graphs"
            )
        return OnnxRuntimeCuda(device)
    return OnnxRuntime("cpu" if device is None else device, threads, targets=targets, verify=verify)


def _tensorrt(device: str | None, threads: int | None, targets: str | None, verify: str) -> Backend:
    from nextscale.runtime.backends.tensorrt.execute import TensorRT

    _refuse_threads(threads)
    return TensorRT("cuda" if device is None else device, targets, verify)


def _tensorrt_rtx(device: str | None, threads: int | None, targets: str | None, verify: str) -> Backend:
    from nextscale.runtime.backends.tensorrt.execute import TensorRTRTX

    _refuse_threads(threads)
    return TensorRTRTX("cuda" if device is None else device, targets, verify)


BACKENDS: dict[str, Callable[[str | None, int | None, str | None, str], Backend]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}


def make_backend(
    name: str,
    device: str | None = None,
    threads: int | None = None,
    targets: str | os.PathLike[str] | None = None,
    verify: str = "full",
) -> Backend:
    """The backend of that name on that device (None: its own); its packages are imported here and not before.

    ``device`` is ``cpu``, ``cuda`` or ``cuda:1``. ``threads`` are those of a pass on the CPU. ``targets`` is the folder
    that ``nextscale build -o`` was given, None where targets lie beside their bundle; ``verify`` says how much of their
    files is looked at.
    Raises :class:`~nextscale.plan.errors.InputError` for a name that is none,
    :class:`~nextscale.runtime.errors.BackendError` where something that it needs is not installed.
    """
    if not isinstance(name, str) or name not in BACKENDS:
        raise InputError(f"backend {name!r} is none of {', '.join(sorted(BACKENDS))}")
    if targets is not None and not isinstance(targets, (str, os.PathLike)):
        raise InputError(f"targets is the path of a folder; found {targets!r}")
    return BACKENDS[name](device, threads, None if targets is None else os.fspath(targets), verify)


def _refuse_threads(threads: int | None) -> None:
    if threads is not None:
        raise InputError(f"threads are of a pass on the CPU, and this one runs on a GPU; found threads {threads!r}")
