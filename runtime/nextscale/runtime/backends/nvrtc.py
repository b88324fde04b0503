"""CUDA source to PTX, by NVIDIA's runtime compiler. It needs neither a GPU nor its driver."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

from nextscale.runtime.errors import BackendError

# NVRTC writes the newest PTX that it knows, which drivers and TensorRT versions older than it refuse. Every PTX that
# this lowers is assembled in the tests, where the assembler names each instruction that would need a newer version.
PORTABLE_VERSION = "8.0"  # CUDA 12.0
NEWEST_LOWERED = 90  # later architectures came with a later PTX


def compile_ptx(source: str, name: str, arch: str = "compute_80", options: Sequence[str] = ()) -> bytes:
    """The PTX text of ``source``, which any GPU from ``arch`` on takes (its driver assembles it).

    ``name`` is the source's file name in messages; ``options`` are the compiler's, such as ``-DNAME=VALUE``. Raises
    :class:`~nextscale.runtime.errors.BackendError` with the compiler's log where the source does not compile, and with
    what to install where there is no compiler.
    """
    nvrtc = _compiler()
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source.encode(), name.encode(), 0, [], []))
    try:
        given = [f"--gpu-architecture={arch}", "--std=c++17", *options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(given), [option.encode() for option in given])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _text(nvrtc, program, "ProgramLog").decode(errors="replace").strip()
            raise BackendError(f"NVRTC does not compile {name} for {arch} with {list(options)}:\n{log}")
        ptx = _text(nvrtc, program, "PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return _portable(ptx, arch)


def _compiler() -> Any:
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        _checked(nvrtc, nvrtc.nvrtcVersion())
    except (ImportError, RuntimeError) as problem:
        raise BackendError(
            f"compiling CUDA kernels needs NVRTC, which is not here ({problem}); pip install 'nextscale[cuda]'"
        ) from problem
    return nvrtc


def _text(nvrtc: Any, program: Any, what: str) -> bytes:
    """What the compiler wrote, without the zero byte at its end."""
    text = bytearray(_checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program)))
    _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, text))
    return bytes(text).rstrip(b"\0")


def _checked(nvrtc: Any, answer: tuple[Any, ...]) -> Any:
    """The values of a call's answer, without its status."""
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BackendError(f"NVRTC answers {status.name}; try: pip install --force-reinstall nvidia-cuda-nvrtc")
    return values[0] if len(values) == 1 else tuple(values)


def _portable(ptx: bytes, arch: str) -> bytes:
    number = re.fullmatch(r"compute_(\d+)", arch)
    if number is None or int(number[1]) > NEWEST_LOWERED:
        return ptx
    return re.sub(rb"(?m)^\.version \d+\.\d+$", f".version {PORTABLE_VERSION}".encode(), ptx, count=1)
