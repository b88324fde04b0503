"""The whole check: export, build, then every backend on every bundle, and what else this machine can tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from nextscale.compare.columns import COMPILE, EAGER, GPU_ONLY, lacking_compiler, lacking_cuda
from nextscale.compare.compiled import CompiledEager
from nextscale.compare.gpu_check import engines, kernel, pictures
from nextscale.compare.gpu_check.findings import FAILED, PASSED, Figures, Finding, Notes
from nextscale.compare.gpu_check.subjects import PRECISIONS, RECIPES, Progress, Way, check_backends, export, ways
from nextscale.compare.machine import Machine, OtherWork, driver_version, this_machine
from nextscale.compare.sides import Ask, BundleSide, on_device
from nextscale.export.bundle import prepared
from nextscale.export.checkpoint import load_checkpoint
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

    @property
    def passed(self) -> bool | None:
        """Whether nothing was wrong and some backend's numbers were right; None where no numbers were looked at."""
        if self.failed:
            return False
        return True if any(f.section == "parity" and f.state == PASSED for f in self.findings) else None


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

    def __post_init__(self) -> None:
        self.notes, self.gpu, self.no_gpu = Notes(self.options.budget), None, ""
        self.threads = self.options.threads or torch.get_num_threads()
        self.device: Device | None = None
        try:
            self.device = open_device()
        except NextscaleError as error:
            self.no_gpu = str(error)
        asked = check_backends(self.options.backends)
        self.ways, self.lacking = ways(asked, self.no_gpu, self.threads)

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device is not None and lacking_cuda() is None else "cpu"

    def gpu_facts(self) -> dict[str, str] | None:
        if self.device is None:
            return None
        facts = {"name": self.device.name, "sm": self.device.sm, "cuda": self.device.driver}
        return facts | ({"driver": found} if (found := driver_version()) else {})

    def all(self) -> None:
        """One bundle in every way first, then the others: where the time is short, it is short of repetitions."""
        torch.set_num_threads(self.threads)
        self.checkpoint = on_device(load_checkpoint(*self.files), self.torch_device)
        self.exported, self.traced = load_checkpoint(*self.files), dict[Any, Any]()
        for name, reason in self.lacking.items():
            self.notes.not_run("backend", {"backend": name}, reason)
        first, *others = [(name, precision) for precision in self._precisions for name in RECIPES]
        telling = self._bundle(*first, variants=True)
        self._kernel()
        if telling:
            self._compiled(telling)
        rest = [bundle for other in others if (bundle := self._bundle(*other))]
        self._elsewhere([bundle for bundle in (telling, *rest) if bundle])
        for bundle in rest:
            if bundle.manifest.precision == first[1]:
                self._compiled(bundle)

    @property
    def _precisions(self) -> tuple[str, ...]:
        """The first is the one that people use: float16 on a GPU."""
        if self.options.quick:
            return ("fp32",)
        return ("fp16", "fp32", "bf16") if self.torch_device == "cuda" else PRECISIONS

    def _export(self, name: str, precision: str) -> Bundle | None:
        """The demo in full or with FastVAR, verified; None where that was not to be."""
        made: list[Bundle] = []
        self.progress("export", 0, 1, f"{name} {precision}")

        def answer() -> Figures:
            bundle = export(self.exported, name, precision, self.folder, self.traced, self.notes.tick)
            made.append(bundle)
            checks = bundle.manifest.verified
            worst = max((v.max_error for v in checks if v.max_error is not None), default=None)
            how = sorted({v.how for v in checks})
            return {"graphs": len(bundle.manifest.graphs), "how": how, "largest_difference": worst}

        self.notes.ask("export", {"recipe": name, "precision": precision}, answer, 30.0)
        return next(iter(made), None)

    def _bundle(self, name: str, precision: str, variants: bool = False) -> Bundle | None:
        """One bundle, eager, on every backend, and where asked in every other way to build it."""
        if (bundle := self._export(name, precision)) is None:
            return None
        subject, asks = _subject(bundle), self._asks(bundle)
        reference: list[pictures.Reference] = []

        def eager() -> Figures:
            reference.append(pictures.make_reference(self.checkpoint, bundle.manifest.plan, precision, asks))
            return pictures.latency(reference[0].side, asks[0], self._runs)

        self.progress("check", 0, 1 + len(self.ways), f"{bundle.folder.name} in eager PyTorch")
        if not self.notes.ask("latency", {"backend": EAGER, "device": self.torch_device, **subject}, eager, 10.0):
            return bundle
        usual: list[tuple[Way, int]] = []  # engines that were built, and their plugin layers
        for done, way in enumerate(self.ways, 1):
            self.progress("check", done, 1 + len(self.ways), f"{bundle.folder.name} on {way.name}")
            if way.backend in GPU_ONLY:
                place = bundle.folder.with_name(f"{bundle.folder.name}.targets")
                work = partial(engines.build, way.backend, bundle, place, engines.USUAL, self.notes.tick)
                if not self.notes.ask("build", {"backend": way.name, **subject}, work, 30.0):
                    continue
                usual.append((way, self.notes.found[-1].data["plugin_layers"]))
            self._way(way, bundle, reference[0])
        if variants:
            self._variants(bundle, usual, reference[0])
        return bundle

    def _way(self, way: Way, bundle: Bundle, reference: pictures.Reference) -> None:
        """One bundle on one backend."""
        subject = {"backend": way.name, "device": way.device, **_subject(bundle)}
        opened: list[BundleSide] = []
        free = self._free()

        def right() -> Figures:
            opened.append(pictures.open_side(way, bundle))
            return pictures.parity(reference, opened[0])

        def held() -> Figures:
            taken = None if free is None else free - (self._free() or 0)
            return pictures.memory(opened[0].pipeline.memory, taken)

        self.notes.ask("parity", subject, right)
        for side in opened:
            ask = reference.runs[0][0]
            self.notes.ask("latency", subject, partial(pictures.latency, side, ask, self._runs))
            self.notes.ask("memory", subject, held)
            if way.device == "cuda" and self.torch_device == "cuda":
                self.notes.ask("idle", subject, partial(pictures.idle, partial(side.run, ask)))
            else:
                self.notes.not_run("idle", subject, "only a GPU idles, and PyTorch's profiler has to see it")
            self.notes.finish("close", subject, side.pipeline.close)

    def _variants(self, bundle: Bundle, usual: list[tuple[Way, int]], reference: pictures.Reference) -> None:
        """Weights inside the engines, and the function in place of the plugin where there is one."""
        if not usual:
            self.notes.not_run("variants", _subject(bundle), "no engines of TensorRT that can run here")
        for way, plugin_layers in usual:
            for variant, wishes in engines.VARIANTS.items():
                place = self.folder / variant.replace(" ", "-") / bundle.folder.name
                other = engines.varied(way, variant, place)
                subject = {"backend": other.name, **_subject(bundle)}
                if wishes.restore == "function" and not plugin_layers:
                    self.notes.not_run("build", subject, "the usual engines hold no plugin: they are these")
                    continue
                work = partial(engines.build, way.backend, bundle, place, wishes, self.notes.tick)
                if self.notes.ask("build", subject, work, 30.0):
                    self._way(other, bundle, replace(reference, runs=reference.runs[:1]))

    def _elsewhere(self, bundles: list[Bundle]) -> None:
        """Without a GPU, engines of one bundle in every precision for GPUs that are elsewhere."""
        if self.device is not None or RTX not in self.lacking:
            return
        for bundle in (b for b in bundles if b.manifest.recipe.name == RECIPES[0]):
            for sm in engines.ELSEWHERE:
                subject = {"backend": RTX, **_subject(bundle), "target": sm}
                if self.options.quick:
                    self.notes.not_run("build", subject, "not part of a quick check")
                    continue
                self.progress("build", 0, 1, f"{bundle.folder.name} for {sm}")
                place = bundle.folder.with_name(f"{bundle.folder.name}.targets")
                work = partial(engines.build, RTX, bundle, place, engines.USUAL, self.notes.tick, sm)
                self.notes.ask("build", subject, work, 30.0)

    def _kernel(self) -> None:
        if self.device is None:
            self.notes.not_run("kernel", {}, self.no_gpu)
        else:
            self.notes.ask("kernel", {}, partial(kernel.bandwidth, self.device, self.options.quick), 20.0)

    def _compiled(self, bundle: Bundle) -> None:
        """``torch.compile``: minutes of compiling."""
        manifest = bundle.manifest
        subject = {"backend": COMPILE, "device": self.torch_device, **_subject(bundle)}
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

            self.notes.ask("latency", subject, answer, 150.0, COMPILE)

    @property
    def _runs(self) -> int:
        return 3 if self.options.quick else 20

    def _free(self) -> int | None:
        """Free bytes of the GPU but for what PyTorch holds; None without one."""
        return None if self.device is None else pictures.without_torch(self.device.memory_info()[0])

    def _asks(self, bundle: Bundle) -> tuple[Ask, ...]:
        """Pictures, one at a time, spread over the classes."""
        plan = bundle.manifest.plan
        count, classes, defaults = 2 if self.options.quick else 4, plan.model().classes or 4, dict(plan.defaults)
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
        "passed": check.passed,
        "findings": [asdict(finding) for finding in check.findings],
    }
