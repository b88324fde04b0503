"""Running all sides, interleaved, and writing down what came out: raw numbers, nothing judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nextscale.compare.columns import Columns, choose
from nextscale.compare.lineup import FULL, make_specs
from nextscale.compare.machine import Machine, OtherWork, this_machine
from nextscale.compare.memory import MemoryUse, measure
from nextscale.compare.options import Options
from nextscale.compare.parity import PictureParity, forced_runs, picture_parities
from nextscale.compare.quality import Likeness, likeness
from nextscale.compare.sides import Ask, Opener, Run, Side, Spec
from nextscale.compare.stability import explained
from nextscale.export.verify import TOLERANCES
from nextscale.plan.types import Plan
from nextscale.runtime.manifest import Manifest
from nextscale.runtime.result import to_uint8

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what
PAUSE = 0.05  # seconds before a timed run: threads of the side before may still be spinning for work


@dataclass
class Record:
    """One side's runs: seconds by graph and in all, pictures (n, H, W, 3) uint8, likeness to eager in full.

    ``warm_up`` are the seconds of the runs before, which hold what is compiled, captured and read for the first time.
    """

    spec: Spec
    versions: dict[str, str]
    memory: MemoryUse | None = None
    warm_up: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    totals: list[float] = field(default_factory=list)
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    likeness: list[Likeness] = field(default_factory=list)

    def add(self, run: Run, full: Run) -> None:
        """One timed run beside the full eager one."""
        for graph, seconds in run.seconds.items():
            self.seconds.setdefault(graph, []).append(seconds)
        self.totals.append(run.total)
        self.pictures += list(to_uint8(run.pictures))
        self.likeness += [likeness(a, b) for a, b in zip(run.pictures, full.pictures, strict=True)]


@dataclass
class Measured:
    """Everything that was found. ``parities[bundle]`` has one entry for each picture."""

    options: Options
    columns: Columns
    asked: Ask
    threads: int
    machine: Machine
    records: dict[str, Record]
    parities: dict[str, list[PictureParity]]
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def full(self) -> Record:
        """Eager PyTorch without methods."""
        return self.records[FULL]

    def label(self, picture: int) -> str:
        """The class of a picture, by name where the bundles know it; or the number of the drawn text."""
        number = self.asked.labels[picture]
        kind = "class" if self.full.spec.plan.model().text is None else "text"
        return self.classes[number] if number < len(self.classes) else f"{kind} {number}"


def collect(bundles: Sequence[Path], model: Path, vae: Path, options: Options, progress: Progress) -> Measured:
    """Runs everything in this process, but for the memory of each side. Raises a ``NextscaleError``."""
    options.check()
    threads = options.threads or torch.get_num_threads()
    # Refused before minutes are spent on memory.
    columns = choose(options.backends, options.device, threads, bundles, options.batch)
    specs, manifests = make_specs(bundles, columns)
    opener = Opener(model, vae, columns.device, threads, options.batch, specs[0].plan)
    asked = _asked(options, specs[0].plan)
    opener.check(specs)
    first = replace(asked, labels=asked.labels[: options.batch])
    memory: dict[str, MemoryUse | None] = {}
    for done, spec in enumerate(specs if options.memory else ()):  # before anything here maps the same files
        progress("memory", done, len(specs), spec.name)
        memory[spec.name] = measure(opener, spec, first)
    with _threads(threads):
        sides = {spec.name: opener.open(spec) for spec in specs}
        records = {s.name: Record(s, sides[s.name].versions(), memory.get(s.name)) for s in specs}
        parities: dict[str, list[PictureParity]] = {s.name: [] for s in specs if s.reference}
        for done, spec in enumerate(specs):
            progress("warm up", done, len(specs), spec.name)
            side = sides[spec.name]
            runs = max(options.warm_up, side.settles)
            records[spec.name].warm_up += [side.run(first).total for _ in range(runs)]
        others = OtherWork()
        for index, ask in enumerate(_asks(asked, options)):
            progress("run", index, options.pictures // options.batch, asked_for(ask))
            _interleaved(specs, sides, ask, index, records, parities, options.pictures)
        machine = this_machine(others)
    notes = (*columns.left_out, *_notes(bundles, manifests, opener))
    return Measured(options, columns, asked, threads, machine, records, parities, manifests[0].classes or (), notes)


def asked_for(ask: Ask) -> str:
    """A run in words."""
    return f"seed {ask.seed}, class or text {', '.join(map(str, ask.labels))}"


def _interleaved(
    specs: Sequence[Spec],
    sides: dict[str, Side],
    ask: Ask,
    index: int,
    records: dict[str, Record],
    parities: dict[str, list[PictureParity]],
    pictures: int,
) -> None:
    """One run of every side, each time another one first; then the bundles again, with their references' tokens."""
    references = {spec.reference for spec in specs}
    runs: dict[str, Run] = {}
    for spec in [*specs[index % len(specs) :], *specs[: index % len(specs)]]:
        time.sleep(PAUSE)
        runs[spec.name] = sides[spec.name].run(ask, logits=spec.name in references)
    for name, record in records.items():
        record.add(runs[name], runs[FULL])
    for spec in specs:
        if spec.reference is not None:
            found = _parities(spec, sides, ask, runs)
            tolerance = TOLERANCES[spec.precision]
            differ = sum(p.error > tolerance for p in (*parities[spec.name], *found))
            if 2 * differ < pictures:  # else parity is lost, whatever the reason
                found = explained(found, sides[spec.reference], ask, runs[spec.reference], spec.precision, tolerance)
            parities[spec.name] += found


def _parities(spec: Spec, sides: dict[str, Side], ask: Ask, runs: dict[str, Run]) -> list[PictureParity]:
    reference = runs[spec.reference or ""]
    stepwise, whole = forced_runs(sides[spec.name], ask, reference)
    return picture_parities(spec.plan, ask, reference, runs[spec.name], stepwise, whole, spec.precision)


def _asked(options: Options, plan: Plan) -> Ask:
    """Classes spread over all there are; settings from the options, else the plan's defaults."""
    classes, defaults = plan.model().classes or options.pictures, dict(plan.defaults)  # or as many texts
    given = {"guidance_scale": options.guidance_scale, "top_p": options.top_p, "temperature": options.temperature}
    fallback = {"guidance_scale": 1.5, "top_p": 1.0, "temperature": 1.0}
    settings = {k: defaults.get(k, fallback[k]) if v is None else v for k, v in given.items()}
    n = options.pictures
    labels = tuple(i * classes // n if n < classes else i % classes for i in range(n))
    return Ask(labels, options.seed, settings["guidance_scale"], settings["top_p"], settings["temperature"])


def _asks(asked: Ask, options: Options) -> Iterator[Ask]:
    for i in range(options.pictures // options.batch):
        labels = asked.labels[i * options.batch : (i + 1) * options.batch]
        yield replace(asked, labels=labels, seed=asked.seed + i)


def _notes(bundles: Sequence[Path], manifests: Sequence[Manifest], opener: Opener) -> Iterator[str]:
    """What a reader should know before looking for a fault."""
    ours = {f.weight_set: f.sha256 for f in opener.checkpoint.source.files}
    for path, manifest in zip(bundles, manifests, strict=True):
        if {f.weight_set: f.sha256 for f in manifest.source.files} != ours:
            yield f"{path.name} says that it was made from other checkpoint files than those compared with"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch on so many threads inside, as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
