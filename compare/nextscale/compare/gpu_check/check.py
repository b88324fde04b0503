"""The whole check: export, build, then every backend on every bundle, and what else this machine can tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nextscale.compare.columns import COMPILE, EAGER, GPU_ONLY, lacking_compiler, lacking_cuda
from nextscale.compare.compiled import CompiledEager
from nextscale.compare.gpu_check import engines, kernel, pictures
from nextscale.compare.gpu_check.findings import FAILED, Figures, Finding, Notes
from nextscale.compare.gpu_check.subjects import PRECISIONS, RECIPES, Progress, Way, check_backends, export, ways
from nextscale.compare.machine import Machine, OtherWork, driver_version, this_machine
from nextscale.compare.sides import Ask, BundleSide, on_device
from nextscale.export.bundle import prepared
from nextscale.export.checkpoint import Checkpoint, load_checkpoint
from nextscale.plan.errors import InputError, NextscaleError
from nextscale.runtime.backends.cuda import Device, open_device
from nextscale.runtime.bundle import Bundle

SCHEMA_VERSION = 1
RTX = "tensorrt-rtx"


@dataclass(frozen=True)
class Options:
    """``backends`` empty: all of this machine. ``quick``: one precision, two pictures, no compiling. ``budget`` s."""

    backends: tuple[str, ...] = ()
    quick: bool = False
    budget: float = 600.0
    threads: int | None = None

    def check(self) -> None:
        """Raises :class:`~nextscale.plan.errors.InputError` for what cannot be run."""
        check_backends(self.backends)
        if not 1 <= self.budget <= 86400:
            raise InputError(f"budget is 1 to 86400 seconds; found {self.budget:g}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads is a number from 1 on; found {self.threads}")


@dataclass(frozen=True)
class Check:
    """What was found, where. ``gpu`` is None where there is none."""

    options: Options
    machine: Machine
    gpu: dict[str, str] | None
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """What ran and was wrong."""
        return tuple(finding for finding in self.findings if finding.state == FAILED)


def run_check(files: tuple[Path, Path], options: Options, progress: Progress) -> Check:
    """Everything, in a temporary folder of its own; nothing else is written. Raises a ``NextscaleError``."""
    options.check()
    others = OtherWork()
    with TemporaryDirectory(prefix="nextscale-gpu-check-") as folder:
        run = _Run(files, options, Path(folder), progress)
        run.all()
    found = (_without(folder, finding) for finding in run.notes.found)
    return Check(options, this_machine(others), run.gpu_facts(), run.notes.spent, tuple(found))


@dataclass
class _Run:
    files: tuple[Path, Path]
    options: Options
    folder: Path
    progress: Progress
    bundles: list[Bundle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.notes, self.gpu, self.no_gpu = Notes(self.options.budget), None, ""
        self.threads = self.options.threads or torch.get_num_threads()
        self.device: Device | None = None
        try:
            self.device = open_device()
        except NextscaleError as error:
            self.no_gpu = str(error)
        asked = check_backends(self.options.backends)
        self.ways, self.lacking = ways(asked, self.device is not None, self.threads)

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device is not None and lacking_cuda() is None else "cpu"

    def gpu_facts(self) -> dict[str, str] | None:
        if self.device is None:
            return None
        facts = {"name": self.device.name, "sm": self.device.sm, "cuda": self.device.driver}
        return facts | ({"driver": found} if (found := driver_version()) else {})

    def all(self) -> None:
        """Section by section, the most telling ones first."""
        torch.set_num_threads(self.threads)
        self.checkpoint = on_device(load_checkpoint(*self.files), self.torch_device)
        for name, reason in self.lacking.items():
            self.notes.not_run("backend", {"backend": name}, reason)
        exported, traced = load_checkpoint(*self.files), dict[Any, Any]()
        for precision in ("fp32",) if self.options.quick else PRECISIONS:
            for bundle in self._export(exported, precision, traced):
                self.bundles.append(bundle)
                self._bundle(bundle)
        self._kernel()
        self._elsewhere()
        for bundle in self.bundles:
            self._variants(bundle)
        for bundle in self.bundles:
            self._compiled(bundle)

    def _export(self, checkpoint: Checkpoint, precision: str, traced: dict[Any, Any]) -> list[Bundle]:
        """The demo in full and with FastVAR, verified."""
        made: list[Bundle] = []
        for done, name in enumerate(RECIPES):
            self.progress("export", done, len(RECIPES), f"{name} {precision}")

            def answer(name: str = name) -> Figures:
                bundle = export(checkpoint, name, precision, self.folder, traced, self.notes.tick)
                made.append(bundle)
                checks = bundle.manifest.verified
                worst = max((v.max_error for v in checks if v.max_error is not None), default=None)
                how = sorted({v.how for v in checks})
                return {"graphs": len(bundle.manifest.graphs), "how": how, "largest_difference": worst}

            self.notes.ask("export", {"recipe": name, "precision": precision}, answer, 30.0)
        return made

    def _bundle(self, bundle: Bundle) -> None:
        """One bundle, eager and on every backend."""
        subject, asks = _subject(bundle), self._asks(bundle)
        reference: list[pictures.Reference] = []

        def eager() -> Figures:
            manifest = bundle.manifest
            reference.append(pictures.make_reference(self.checkpoint, manifest.plan, manifest.precision, asks))
            return pictures.latency(reference[0].side, asks[0], self._runs)

        self.progress("check", 0, 1 + len(self.ways), f"{bundle.folder.name} in eager PyTorch")
        if not self.notes.ask("latency", {"backend": EAGER, "device": self.torch_device, **subject}, eager, 10.0):
            return
        for done, way in enumerate(self.ways, 1):
            self.progress("check", done, 1 + len(self.ways), f"{bundle.folder.name} on {way.name}")
            if way.backend in GPU_ONLY:
                place = bundle.folder.with_name(f"{bundle.folder.name}.targets")
                work = partial(engines.build, way.backend, bundle, place, engines.USUAL, self.notes.tick)
                if not self.notes.ask("build", {"backend": way.name, **subject}, work, 60.0):
                    continue
            self._way(way, bundle, reference[0])

    def _way(self, way: Way, bundle: Bundle, reference: pictures.Reference) -> bool:
        """One bundle on one backend; whether its numbers are right."""
        subject = {"backend": way.name, "device": way.device, **_subject(bundle)}
        opened: list[BundleSide] = []
        free = self._free()

        def right() -> Figures:
            opened.append(pictures.open_side(way, bundle))
            return pictures.parity(reference, opened[0])

        held = self.notes.ask("parity", subject, right)
        if opened:
            side, ask = opened[0], reference.runs[0][0]
            self.notes.ask("latency", subject, partial(pictures.latency, side, ask, self._runs))
            taken = None if free is None else free - (self._free() or 0)
            self.notes.ask("memory", subject, partial(pictures.memory, side.pipeline.memory, taken))
            if way.device == "cuda" and self.torch_device == "cuda":
                self.notes.ask("idle", subject, partial(pictures.idle, partial(side.run, ask)))
            else:
                self.notes.not_run("idle", subject, "only a GPU idles, and PyTorch's profiler has to see it")
            side.pipeline.close()
        return held

    def _variants(self, bundle: Bundle) -> None:
        """Weights inside the engines, and the function in place of the plugin."""
        subject = _subject(bundle)
        usual = [way for way in self.ways if way.backend in GPU_ONLY]
        if not usual:
            self.notes.not_run("variants", subject, "no TensorRT that can run here")
        for way in usual:
            for variant, wishes in engines.VARIANTS.items():
                if "function" in variant and way.backend != "tensorrt":
                    self.notes.not_run("variants", {"backend": way.name, **subject}, f"{way.backend} takes no plugin")
                    continue
                place = self.folder / variant.replace(" ", "-") / bundle.folder.name
                work = partial(engines.build, way.backend, bundle, place, wishes, self.notes.tick)
                other = engines.varied(way, variant, place)
                if self.notes.ask("build", {"backend": other.name, **subject}, work, 60.0):
                    manifest, asks = bundle.manifest, self._asks(bundle)
                    again = pictures.make_reference(self.checkpoint, manifest.plan, manifest.precision, asks[:1])
                    self._way(other, bundle, again)

    def _elsewhere(self) -> None:
        """Without a GPU, engines of one bundle in every precision for GPUs that are elsewhere."""
        if self.device is not None or RTX not in self.lacking:
            return
        for bundle in (b for b in self.bundles if b.manifest.recipe.name == RECIPES[-1]):
            for sm in engines.ELSEWHERE:
                subject = {"backend": RTX, **_subject(bundle), "target": sm}
                if self.options.quick:
                    self.notes.not_run("build", subject, "not part of a quick check")
                    continue
                self.progress("build", 0, 1, f"{bundle.folder.name} for {sm}")
                place = bundle.folder.with_name(f"{bundle.folder.name}.targets")
                work = partial(engines.build, RTX, bundle, place, engines.USUAL, self.notes.tick, sm)
                self.notes.ask("build", subject, work, 60.0)

    def _kernel(self) -> None:
        if self.device is None:
            self.notes.not_run("kernel", {}, self.no_gpu)
        else:
            self.notes.ask("kernel", {}, partial(kernel.bandwidth, self.device, self.options.quick), 20.0)

    def _compiled(self, bundle: Bundle) -> None:
        """``torch.compile``: minutes of compiling, so last, and in one precision."""
        manifest, subject = bundle.manifest, _subject(bundle)
        if manifest.precision != ("fp16" if self.torch_device == "cuda" and not self.options.quick else "fp32"):
            return
        subject = {"backend": COMPILE, "device": self.torch_device, **subject}
        if self.options.quick:
            self.notes.not_run("latency", subject, "not part of a quick check")
        elif why := lacking_compiler(self.torch_device):
            self.notes.not_run("latency", subject, why)
        else:
            self.progress("check", 0, 1, f"{bundle.folder.name} through torch.compile")
            ask = self._asks(bundle)[0]

            def answer() -> Figures:
                compiled = CompiledEager(prepared(self.checkpoint, manifest.plan, manifest.precision))
                return pictures.compiling(compiled, ask, self._runs, self.notes.tick)

            self.notes.ask("latency", subject, answer, 150.0)

    @property
    def _runs(self) -> int:
        return 3 if self.options.quick else 20

    def _free(self) -> int | None:
        return None if self.device is None else self.device.memory_info()[0]

    def _asks(self, bundle: Bundle) -> tuple[Ask, ...]:
        """Pictures, one at a time, spread over the classes."""
        plan = bundle.manifest.plan
        count, classes, defaults = 2 if self.options.quick else 4, plan.model().classes, dict(plan.defaults)
        first = Ask((0,), 0, defaults["guidance_scale"], defaults["top_p"], defaults["temperature"])
        return tuple(replace(first, labels=(i * classes // count,), seed=i) for i in range(count))


def _without(folder: str, finding: Finding) -> Finding:
    """Names of temporary files are nobody's concern."""
    return replace(finding, reason=finding.reason and finding.reason.replace(f"{folder}/", ""))


def _subject(bundle: Bundle) -> dict[str, str]:
    return {"recipe": bundle.manifest.recipe.name, "precision": bundle.manifest.precision}


def as_data(check: Check) -> dict[str, Any]:
    """What is written: plain data, no path of this machine."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "gpu-check",
        "gpu": check.gpu,
        "machine": asdict(check.machine),
        "quick": check.options.quick,
        "budget": check.options.budget,
        "seconds": round(check.seconds, 1),
        "passed": not check.failed,
        "findings": [asdict(finding) for finding in check.findings],
    }
