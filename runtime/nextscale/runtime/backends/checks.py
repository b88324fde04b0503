"""The one checker of what CUDA and TensorRT return: a status, False, or None that is no answer, becomes our error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nextscale.runtime.errors import BackendError

_LOST = "the process's work on this GPU is lost: start the process again"
_CAPTURE = "something in the chain cannot be captured"
ADVICE = {
    "CUDA_ERROR_OUT_OF_MEMORY": "free memory on the device, or use fewer slots or smaller batches",
    "CUDA_ERROR_NO_DEVICE": "no NVIDIA GPU is visible: look at nvidia-smi and at CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_INVALID_DEVICE": "there is no such GPU: look at nvidia-smi and at CUDA_VISIBLE_DEVICES",
    "CUDA_ERROR_STUB_LIBRARY": "a stub of the driver library is found first: take it out of LD_LIBRARY_PATH",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "driver and kernel module differ: restart after the driver's update",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "update the NVIDIA driver",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process holds the GPU exclusively, or it is in a bad state: nvidia-smi",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "this GPU is older than the code's target: sm_75 for noise, sm_80 for the plugin",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the NVIDIA driver is older than the compiler: update the driver",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": _CAPTURE,
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": _CAPTURE,
    "CUDA_ERROR_ILLEGAL_ADDRESS": _LOST,
    "CUDA_ERROR_MISALIGNED_ADDRESS": _LOST,
    "CUDA_ERROR_LAUNCH_FAILED": _LOST,
    "CUDA_ERROR_LAUNCH_TIMEOUT": _LOST,
    "CUDA_ERROR_ECC_UNCORRECTABLE": "the GPU's memory is failing: nvidia-smi -q -d ECC",
}
_NO_DRIVER = "install the NVIDIA driver; CUDA runs on machines with an NVIDIA GPU only"
_CODE = re.compile(r"CUDA_ERROR_[A-Z0-9_]+")


def checked(what: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call CUDA: what it returns, without a status.

    ``what`` completes the sentence "CUDA cannot ...". The driver's functions return ``(status, values...)``, cuda-core
    raises; either becomes :class:`BackendError` with the code's name and what to do about it.
    """
    try:
        result = function(*arguments, **named)
    except Exception as error:
        raise _failure(what, str(error).strip() or type(error).__name__) from error
    if not (isinstance(result, tuple) and result and type(result[0]).__name__ == "CUresult"):
        return result
    status, *values = result
    if int(status) != 0:
        raise _failure(what, f"{status.name} (status {int(status)})")
    return None if not values else values[0] if len(values) == 1 else tuple(values)


def accepted(what: str, answer: Any, why: str = "") -> Any:
    """What TensorRT answered, unless it is a refusal: False or None. ``what`` completes "TensorRT does not ..."."""
    if answer is None or answer is False:
        raise BackendError(
            f"TensorRT does not {what}" + (f": {why}" if why else " (the log of nextscale.tensorrt has its reason)")
        )
    return answer


def _failure(what: str, text: str) -> BackendError:
    code = _CODE.search(text)
    # The way in which cuda.bindings says that there is no driver is a sentence, not a code.
    advice = _NO_DRIVER if "driver library" in text or "libcuda" in text else ADVICE.get(code.group() if code else "")
    return BackendError(f"CUDA cannot {what}: {text[:400]}" + (f"; {advice}" if advice else ""))
