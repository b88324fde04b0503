"""What is checked: bundles of the demo model, and the backends of this machine, in every way in which they can run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nextscale.compare.columns import BACKENDS, GPU_ONLY
from nextscale.export.bundle import Options, export_bundle
from nextscale.export.checkpoint import Checkpoint
from nextscale.export.graphs import Traced
from nextscale.plan.errors import InputError, NextscaleError
from nextscale.plan.recipes import plan_for, recipe
from nextscale.runtime.backends import Backend, make_backend
from nextscale.runtime.bundle import Bundle, open_bundle
from nextscale.runtime.manifest import Recipe

Progress = Callable[[str, int, int, str], None]

RECIPES = ("demo-fastvar", "demo")  # the first has all that a backend has to know
PRECISIONS = ("fp32", "fp16", "bf16")  # those that take longer to export last, should time run out


@dataclass(frozen=True)
class Way:
    """A backend as it is opened. ``variant`` is "" for the usual one; ``make`` raises a ``NextscaleError``."""

    backend: str
    device: str
    make: Callable[[], Backend]
    variant: str = ""

    @property
    def name(self) -> str:
        """``tensorrt, weights embedded``."""
        return f"{self.backend}, {self.variant}" if self.variant else self.backend


def check_backends(asked: Sequence[str]) -> tuple[str, ...]:
    """Known backends, each once; raises :class:`~nextscale.plan.errors.InputError`."""
    if unknown := [name for name in asked if name not in BACKENDS]:
        raise InputError(f"backend {unknown[0]!r} is none of {', '.join(BACKENDS)}")
    return tuple(dict.fromkeys(asked)) or BACKENDS


def ways(asked: Sequence[str], no_gpu: str, threads: int) -> tuple[list[Way], dict[str, str]]:
    """The backends that can run here, and why the others cannot.

    ``no_gpu`` says why none can be used, "" where one can; ONNX Runtime then runs on the CPU.
    """
    found, lacking = [], {}
    for name in asked:
        device = "cpu" if no_gpu else "cuda"
        if name in GPU_ONLY and no_gpu:
            lacking[name] = no_gpu
            continue

        def make(name: str = name, device: str = device) -> Backend:
            return make_backend(name, device, threads if device == "cpu" else None)

        try:
            make()
        except NextscaleError as error:
            lacking[name] = str(error)
        else:
            found.append(Way(name, device, make))
    return found, lacking


def export(
    checkpoint: Checkpoint, name: str, precision: str, folder: Path, traced: Traced, progress: Progress
) -> Bundle:
    """A bundle of a recipe, verified against eager PyTorch as every export is."""
    chosen = recipe(name)
    plan = plan_for(chosen, checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)
    out = folder / f"{name}-{precision}"
    options = Options(plan, Recipe(chosen.name, chosen.version), precision)
    export_bundle(checkpoint, options, out, progress, traced)
    return open_bundle(out)
