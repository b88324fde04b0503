"""What a GPU makes of drawn models: every backend against upstream's code, eager PyTorch and torch.compile.

    python benchmarks/bench_gpu.py [--model var-d16 ...] [--precision bf16 fp16] [--batch 1 4 8] [--budget 14400]

Draws VAR-d16 and d30 at 256 px, d36 at 512 px and Infinity's 2B at 512 and 1024 px, in full and with FastVAR; all sides
run in one process. Upstream's code (upstream_side.py) and eager PyTorch have flash attention, upstream in its autocast
and an Infinity one picture at a time; torch.compile has CUDA graphs. Beside times, of backends: parity under forced
tokens, device memory against weights, tapes, caches and scratch, and the share of a picture in which the GPU idles.
Compiling takes minutes for each model, precision and batch, so it comes after everything else of all models, while the
budget lasts; what was not run says why. The JSON is written after every case. Bundles are not verified when they are
written: parity is what is asked here. What the figures have to show: gpu_bars.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from gpu_bars import Row, bars, show
from gpu_cases import MODELS, UPSTREAM, Case, ask_of, cases
from gpu_torch import allocated, flash, forget_compiled, free
from upstream_side import upstream_side

from nextscale.compare.columns import BACKENDS, COMPILE, EAGER, GPU_ONLY, lacking_compiler, lacking_cuda
from nextscale.compare.compiled import CompiledEager
from nextscale.compare.gpu_check import engines, pictures
from nextscale.compare.gpu_check.findings import PASSED, Figures, Notes
from nextscale.compare.gpu_check.subjects import Progress, Way, ways
from nextscale.compare.machine import OtherWork, driver_version, this_machine
from nextscale.compare.plain import plain
from nextscale.compare.sides import Ask, BundleSide, Side, on_device
from nextscale.export.bundle import Options, prepared, write_graphs, write_manifest
from nextscale.export.checkpoint import Checkpoint, load_checkpoint
from nextscale.export.draw import draw_checkpoint
from nextscale.export.graphs import Traced
from nextscale.plan.recipes import plan_for, recipe
from nextscale.plan.types import Grid, Plan
from nextscale.runtime.backends.tensorrt.wishes import Wishes
from nextscale.runtime.bundle import Bundle, open_bundle
from nextscale.runtime.manifest import Recipe

RESULTS = Path(__file__).parent / "results"
SEEDS = 3  # of the pictures that parity is judged by: where tokens tie, one decides nothing
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}  # of upstream's autocast; float32 has none


@dataclass
class Bench:
    """A model's checkpoints, on the CPU to export and on the device to run, and where bundles go."""

    files: tuple[Path, Path]
    folder: Path
    device: str
    ways: Sequence[Way]
    notes: Notes
    runs: int = 20
    usual: tuple[Grid, ...] | None = None  # the schedule of files that name none

    def __post_init__(self) -> None:
        self.traced: Traced = {}
        self.bundles: dict[tuple[str, str], Bundle | None] = {}
        self.checkpoint = on_device(load_checkpoint(*self.files, usual=self.usual), self.device)

    @cached_property
    def exported(self) -> Checkpoint:
        """The checkpoint in the host's memory."""
        return load_checkpoint(*self.files, usual=self.usual)

    def run(self, case: Case) -> None:
        """Eager PyTorch, then every backend on the same pictures."""
        if (bundle := self.bundle(case)) is None:
            self.notes.not_run("latency", case.subject(EAGER), "its bundle was not exported")
            return
        plan, ask = bundle.manifest.plan, ask_of(bundle.manifest.plan, case.batch)
        made: list[pictures.Reference] = []

        def eager() -> Figures:
            with flash(self.device):
                asks = [replace(ask, seed=seed) for seed in range(SEEDS)]
                made.append(pictures.make_reference(self.checkpoint, plan, case.precision, asks))
            return self._measured(made[0].side, ask)

        if self.notes.ask("latency", case.subject(EAGER), eager, 30.0):
            self._upstream(case, plan, ask)
            for way in self.ways:
                self._backend(way, bundle, case, made[0], ask)

    def compiled(self, case: Case) -> None:
        """The same through torch.compile, which needs no bundle."""
        if why := lacking_compiler(self.device):
            self.notes.not_run("latency", case.subject(COMPILE), why)
            return

        def answer() -> Figures:
            plan = plan_of(self.checkpoint, case.recipe)
            with flash(self.device):
                eager = CompiledEager(prepared(self.checkpoint, plan, case.precision))
                return pictures.compiling(eager, ask_of(plan, case.batch), self.runs, self.notes.tick)

        self.notes.ask("latency", case.subject(COMPILE), answer, 240.0, COMPILE)
        forget_compiled()

    def bundle(self, case: Case) -> Bundle | None:
        """Exported once for all batch sizes, and not verified; None where that failed or had no time."""
        key = (case.recipe, case.precision)

        def answer() -> Figures:
            made = write_bundle(self.exported, *key, self.folder, self.traced, self.notes.tick)
            self.bundles[key] = made
            return {"graphs": len(made.manifest.graphs)}

        if key not in self.bundles:
            self.bundles[key] = None  # asked once
            self.notes.ask("export", case.subject("bundle"), answer, 60.0)
        return self.bundles[key]

    def _upstream(self, case: Case, plan: Plan, ask: Ask) -> None:
        """Upstream's eager code in its autocast, on the same pictures."""
        subject = case.subject(UPSTREAM)
        if plan.model().text and len(ask.labels) > 1:
            self.notes.not_run("latency", subject, "upstream's code makes one picture at a time")
            return

        def answer() -> Figures:
            return self._measured(upstream_side(self.checkpoint, plan, HALVES.get(case.precision)), ask)

        self.notes.ask("latency", subject, answer, 30.0)

    def _measured(self, side: Side, ask: Ask) -> Figures:
        """A side of PyTorch: times, and what a picture takes of the GPU's memory, weights apart."""
        with flash(self.device):
            taken = allocated(partial(side.run, ask), self.device)  # first: upstream keeps its restore caches
            return {**pictures.latency(side, ask, self.runs), "allocated": taken}

    def _backend(self, way: Way, bundle: Bundle, case: Case, reference: pictures.Reference, ask: Ask) -> None:
        subject, place = case.subject(way.name), bundle.folder.with_name(f"{bundle.folder.name}.targets")
        if way.backend in GPU_ONLY:
            build = partial(engines.build, way.backend, bundle, place, Wishes((case.batch,)), self.notes.tick)
            if not self.notes.ask("build", subject, build, 120.0):
                return
        before = free()
        opened: list[BundleSide] = []

        def right() -> Figures:
            opened.append(pictures.open_side(way, bundle, case.batch))
            with flash(self.device):  # eager PyTorch may be asked once more
                return pictures.parity(reference, opened[0])

        def held() -> Figures:
            taken = None if before is None else before - (free() or 0)
            return pictures.memory(opened[0].pipeline.memory, taken)

        self.notes.ask("parity", subject, right, 30.0)
        for side in opened:
            self.notes.ask("latency", subject, partial(pictures.latency, side, ask, self.runs), 20.0)
            self.notes.ask("memory", subject, held)
            if way.device == "cuda":
                self.notes.ask("idle", subject, partial(pictures.idle, partial(side.run, ask)), 10.0)
            self.notes.finish("close", subject, side.pipeline.close)


Make = Callable[[tuple[Path, Path], Path, tuple[Grid, ...]], Bench]  # of a model's files, a folder, its schedule


def plan_of(checkpoint: Checkpoint, name: str) -> Plan:
    """A recipe's plan with the checkpoint's own numbers."""
    return plan_for(recipe(name), checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)


def write_bundle(
    checkpoint: Checkpoint, name: str, precision: str, folder: Path, traced: Traced, progress: Progress
) -> Bundle:
    """A bundle of a recipe with the checkpoint's own numbers."""
    chosen, out = recipe(name), folder / f"{name}-{precision}"
    plan = plan_of(checkpoint, name)
    out.mkdir(parents=True)
    options = Options(plan, Recipe(chosen.name, chosen.version), precision)
    weights = write_graphs(checkpoint, options, out, progress, traced)
    write_manifest(out, out.name, checkpoint, options, weights, ())
    return open_bundle(out, verify="size")


def report(notes: Notes, gpu: Mapping[str, str], others: OtherWork) -> Row:
    """Plain data."""
    found = [asdict(finding) for finding in notes.found]
    machine = asdict(this_machine(others))
    return {"gpu": dict(gpu), "machine": machine, "seconds": notes.spent, "findings": found, "bars": bars(notes.found)}


def bench_model(model: str, make: Make, work: Callable[[Bench], None], notes: Notes) -> None:
    """Work on one model, drawn for it and gone after it; a model that cannot be drawn or loaded is noted."""
    base = recipe(model)

    def all_of_it() -> None:
        with TemporaryDirectory(prefix="bench-gpu-") as name:
            files = draw_checkpoint(base.model, base.tokenizer, base.schedule, Path(name) / "drawn")
            work(make(files, Path(name), base.schedule))

    notes.finish("model", {"model": model, "side": "drawn"}, all_of_it)


def write(path: Path, data: Row) -> None:
    """The JSON, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(plain(data), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def bench_all(
    models: Sequence[str],
    precisions: Sequence[str],
    batches: Sequence[int],
    make: Make,
    notes: Notes,
    save: Callable[[], object],
) -> None:
    """Every case of every model, then all of them through torch.compile; ``save`` is called after each."""
    for how, act in ((EAGER, Bench.run), (COMPILE, Bench.compiled)):
        for model in models:
            wanted = cases([model], precisions, batches)

            def work(bench: Bench, wanted: Sequence[Case] = wanted, how: str = how, act: Any = act) -> None:
                for case in wanted:
                    print(f"{case.recipe} {case.precision} batch {case.batch}: {how}", flush=True)
                    act(bench, case)
                    save()

            if notes.spent < notes.budget:
                bench_model(model, make, work, notes)
            else:
                for case in wanted:
                    notes.not_run("latency", case.subject(how), "no time was left to draw its model")
            save()


def main() -> None:
    """Measures, prints the bars, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    # Those of flash attention.
    parser.add_argument("--precision", nargs="+", choices=("bf16", "fp16"), default=["bf16", "fp16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--budget", type=float, default=4 * 3600.0, metavar="SECONDS", help="default: four hours")
    parser.add_argument("--out", type=Path, default=RESULTS / "bench_gpu.json")
    asked = parser.parse_args()
    if why := lacking_cuda():
        print(f"this benchmark measures a GPU: {why}")
        return
    from nextscale.runtime.backends.cuda import open_device

    others, notes, device = OtherWork(), Notes(asked.budget), open_device()
    found, missing = ways(asked.backend, "", 1)
    for name, reason in missing.items():
        notes.not_run("backend", {"side": name}, reason)
    gpu = {"name": device.name, "sm": device.sm, "driver": driver_version() or "unknown", "cuda": device.driver}

    def make(files: tuple[Path, Path], folder: Path, schedule: tuple[Grid, ...]) -> Bench:
        return Bench(files, folder, "cuda", found, notes, usual=schedule)

    def save() -> None:
        write(asked.out, report(notes, gpu, others))

    save()  # a place that cannot be written is told now
    bench_all(asked.model, asked.precision, asked.batch, make, notes, save)
    for each in notes.found:
        if each.state != PASSED:
            print(f"{each.state}: {each.section} of {' '.join(each.subject.values())}: {each.reason}")
    for row in bars(notes.found):
        print(show(row))
    print(f"written to {asked.out}")


if __name__ == "__main__":
    main()
