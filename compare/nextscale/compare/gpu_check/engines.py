"""Engines of TensorRT on this GPU: built, and what the other choices in a build cost and save."""

from __future__ import annotations

from pathlib import Path

from nextscale.compare.gpu_check.findings import Figures, NotRun
from nextscale.compare.gpu_check.subjects import Progress, Way
from nextscale.plan.errors import InputError
from nextscale.runtime.backends import Backend
from nextscale.runtime.backends.tensorrt.build import build_target
from nextscale.runtime.backends.tensorrt.library import load
from nextscale.runtime.backends.tensorrt.wishes import Wishes, choose_targets, settings_for, this_gpu
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import BackendError

# The others beside the usual one: weights as inputs, and the plugin where the flavour takes one.
USUAL = Wishes()
ELSEWHERE = ("sm86", "sm89", "sm120")  # what TensorRT-RTX builds for without a GPU, of cards that people have
VARIANTS = {"weights embedded": Wishes(weights="embedded"), "restore by function": Wishes(restore="function")}


def build(
    flavor: str, bundle: Bundle, place: Path, wishes: Wishes, progress: Progress, sm: str | None = None
) -> Figures:
    """Engines for ``sm``, or for this GPU. Raises :class:`NotRun` where the flavour is not here, or not for that."""
    try:
        library = load(flavor)
        (target,) = choose_targets(library, (sm or this_gpu().sm,))
        settings = settings_for(bundle, library, target, wishes)
    except (InputError, BackendError) as error:
        raise NotRun(str(error)) from error
    report = build_target(bundle, settings, place, progress)
    engines = report.target.engines
    return {
        "target": target,
        "library": library.version,
        "seconds": report.seconds,
        "bytes": sum(engine.size for engine in engines),
        "engines": len(engines),
        "plugin_layers": sum(engine.plugin_layers for engine in engines),
        "weights": settings.weights,
        "restore": settings.restore,
    }


def varied(way: Way, variant: str, place: Path) -> Way:
    """The same backend on targets that lie elsewhere."""

    def make() -> Backend:
        from nextscale.runtime.backends.tensorrt.execute import TensorRT, TensorRTRTX

        kind = {"tensorrt": TensorRT, "tensorrt-rtx": TensorRTRTX}[way.backend]
        return kind(way.device, place)

    return Way(way.backend, way.device, make, variant)
