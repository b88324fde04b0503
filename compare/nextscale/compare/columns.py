"""The columns of a comparison: what executes a plan, which of it this machine has, and what the rest lacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from nextscale.plan.errors import EnvironmentProblem, InputError, NextscaleError
from nextscale.runtime.backends import Backend, make_backend
from nextscale.runtime.backends.tensorrt.execute import TensorRT
from nextscale.runtime.bundle import open_bundle

EAGER, COMPILE = "eager", "torch.compile"
EVERY = "all"
GPU_ONLY = ("tensorrt", "tensorrt-rtx")
BACKENDS = ("onnxruntime", *GPU_ONLY)
COLUMNS = (EAGER, COMPILE, *BACKENDS)
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Columns:
    """What is compared, ``eager`` first, all on one ``device``; ``left_out`` says, one sentence each, what is not."""

    names: tuple[str, ...]
    device: str
    left_out: tuple[str, ...] = ()

    @property
    def backends(self) -> tuple[str, ...]:
        """Those that execute bundles."""
        return tuple(name for name in self.names if name in BACKENDS)

    @property
    def compiled(self) -> bool:
        """Whether ``torch.compile`` is one of them."""
        return COMPILE in self.names


def choose(
    asked: Sequence[str], device: str | None, threads: int | None, bundles: Sequence[Path] = (), batch: int = 1
) -> Columns:
    """The asked columns, in their order; eager PyTorch, the reference, is always one.

    ``all`` takes what this machine has. ``device`` None is ``cuda`` where a TensorRT is asked for or, with ``all``,
    where PyTorch has a GPU, else ``cpu``. A TensorRT needs engines of every bundle, for ``batch`` pictures. Raises
    :class:`~nextscale.plan.errors.InputError` for a name that is none, and what a column that was asked for by name
    lacks.
    """
    known = (*COLUMNS, EVERY)
    if unknown := [name for name in asked if name not in known]:
        raise InputError(f"backend {unknown[0]!r} is none of {', '.join(known)}")
    if not asked or (EVERY in asked and len(asked) > 1):
        raise InputError("backends are one or more names, or 'all' alone")
    if device not in (None, *DEVICES):
        raise InputError(f"device {device!r} is none of {', '.join(DEVICES)}")
    if device is None:
        gpu = any(name in GPU_ONLY for name in asked) or (EVERY in asked and lacking_cuda() is None)
        device = "cuda" if gpu else "cpu"
    if EVERY not in asked:
        for name in (EAGER, *asked):
            require(name, device, threads, bundles, batch)
        return Columns(tuple(dict.fromkeys((EAGER, *asked))), device)
    found = {name: lacking(name, device, threads, bundles, batch) for name in COLUMNS}
    if found[EAGER]:
        raise EnvironmentProblem(found[EAGER])
    left_out = tuple(f"{name} is left out: {why}" for name, why in found.items() if why)
    return Columns(tuple(name for name, why in found.items() if why is None), device, left_out)


def lacking(
    name: str, device: str, threads: int | None = None, bundles: Sequence[Path] = (), batch: int = 1
) -> str | None:
    """One sentence on what this machine lacks for a column on a device; None where it has all."""
    try:
        require(name, device, threads, bundles, batch)
    except NextscaleError as error:
        return str(error)
    return None


def require(name: str, device: str, threads: int | None = None, bundles: Sequence[Path] = (), batch: int = 1) -> None:
    """Raises a :class:`~nextscale.plan.errors.NextscaleError` where a column cannot run here."""
    why = None
    if name == EAGER:
        why = lacking_cuda() if device == "cuda" else None
    elif name == COMPILE:
        why = lacking_compiler(device)
    elif name in GPU_ONLY and device != "cuda":
        raise InputError(f"{name} runs on a GPU: ask for device 'cuda', or leave {name} out")
    else:
        backend = open_backend(name, device, threads)
        if isinstance(backend, TensorRT):
            backend.verify = "size"  # in full when it is opened
            for folder in bundles:
                backend.find(open_bundle(folder, verify="size"), (batch,))
    if why:
        raise EnvironmentProblem(why)


def open_backend(name: str, device: str, threads: int | None) -> Backend:
    """What executes bundles in that column; ``threads`` are of a pass on the CPU, and no GPU's backend takes them."""
    return make_backend(name, device, threads if device == "cpu" else None)


def lacking_cuda() -> str | None:
    """Why PyTorch cannot use a GPU here; None where it can."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"device 'cuda' needs a PyTorch with CUDA, and this is {torch.__version__}: install PyTorch's CUDA build"
    return f"PyTorch {torch.__version__} finds no GPU: `nextscale doctor` says what the driver reports"


def lacking_compiler(device: str) -> str | None:
    """Why ``torch.compile`` cannot compile for a device; None where it can."""
    if device == "cuda":
        if why := lacking_cuda():
            return why
        if find_spec("triton") is None:
            return "torch.compile needs the package triton for a GPU: pip install triton"
        return lacking_c_compiler()
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "torch.compile needs a C++ compiler on the CPU: install g++ or clang++, or name one in CXX"
    return None


def lacking_c_compiler() -> str | None:
    """Why triton cannot build what starts its kernels; None where it can. Takes what CC names, else what is there."""
    named = os.environ.get("CC")
    if any(which(name) for name in ([named] if named else ("gcc", "clang", "cc"))):
        return None
    found = f"CC names {named!r}, which is not there" if named else "there is none"
    return f"torch.compile needs a C compiler for a GPU, and {found}: install gcc or clang, or name one in CC"
