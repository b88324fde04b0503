"""Building a target of a bundle: what of it is there already, and the rest engine by engine."""

from __future__ import annotations

import platform
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.tensorrt.engine import Job
from nextscale.runtime.backends.tensorrt.library import load
from nextscale.runtime.backends.tensorrt.process import Builder
from nextscale.runtime.backends.tensorrt.wishes import this_gpu
from nextscale.runtime.buffers import for_text
from nextscale.runtime.bundle import Bundle, check_file
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import WEIGHTS_FILE, Graph
from nextscale.runtime.targets.folder import damage, read_target
from nextscale.runtime.targets.manifest import FILE_NAME, Engine, NewerManifest, Settings, Target, dumps, make_target
from nextscale.runtime.targets.places import folder_name, user_cache
from nextscale.runtime.targets.publish import (
    check_place,
    clear,
    digest,
    hidden_folder,
    publish,
    record,
    recorded,
    reported,
    tidy,
    unfinished,
)
from nextscale.runtime.targets.stale import stale

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what
PARTS = 1000  # of one engine, in which progress is told


Reasons = dict[str, tuple[str, ...]]  # why each engine is built; engines that are not, are not in it


@dataclass(frozen=True)
class Report:
    """A target that stands. ``reasons`` says why an engine was built; engines that were up to date are not in it.

    ``resumed`` are those of them that an interrupted build had finished.
    """

    folder: Path
    target: Target
    reasons: Mapping[str, tuple[str, ...]]
    resumed: tuple[str, ...]
    seconds: float


def build_target(
    bundle: Bundle,
    settings: Settings,
    place: Path,
    progress: Progress,
    force: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Report:
    """Builds what is missing or out of date in ``place/<flavor>-<target>-<precision>``, and publishes it whole.

    ``progress`` hears of every engine, ``say`` a sentence for what is there and out of date. ``force`` builds all of it
    again, also a target of a newer version. An interrupted build leaves finished engines hidden, for the next one of
    the same settings; with ``force`` it leaves none. Raises :class:`InputError`, :class:`BackendError`, or
    :class:`~nextscale.plan.errors.EnvironmentProblem` where the disk is full or the place cannot be written.
    """
    start, place = time.monotonic(), place.resolve()
    name = folder_name(settings.flavor, settings.target, settings.precision)
    check_place(place, name, FILE_NAME)
    _check_graphs(bundle, settings)
    versions = _versions(settings)
    with reported(place), hidden_folder(place, name) as hidden:
        old, reasons = _compare(bundle, settings, place / name, force)
        if old is not None and not reasons and old.settings == settings and _covers(old, bundle):
            clear(hidden)
            tidy(place / name, old)
            return Report(place / name, old, {}, (), time.monotonic() - start)
        if place.joinpath(name).exists():
            _tell(say, name, reasons, len(bundle.manifest.graphs))
        if force:
            clear(hidden)
        finished = _finished(bundle, settings, hidden, lambda sentence: say(f"{name}: {sentence}"))
        resumed = tuple(graph for graph in finished if graph in reasons)
        timings = _timings(settings)
        task = _Task(bundle, settings, versions, timings, hidden, place / name, old, reasons, finished, not force)
        engines = task.run(progress)
        target = make_target(settings, bundle.folder.name, engines, versions)
        (hidden / FILE_NAME).write_text(dumps(target), encoding="utf-8")
        publish(hidden, place, name)
        tidy(place / name, target)
    return Report(place / name, target, reasons, resumed, time.monotonic() - start)


def kept(bundle: Bundle, settings: Settings, place: Path) -> int:
    """How many engines the next build of these settings finds finished by one that was interrupted."""
    name = folder_name(settings.flavor, settings.target, settings.precision)
    graphs = {graph.name: bundle.manifest.files[graph.file].sha256 for graph in bundle.manifest.graphs}
    there = ((target, target.engines[0]) for target in unfinished(place, name))
    return sum(e.graph in graphs and not stale(target, e, settings, graphs[e.graph]) for target, e in there)


@dataclass(frozen=True)
class _Task:
    """Filling the hidden folder with the engines of a target: copied, found finished there, or built.

    With ``keep``, each that is built is the next build's, should this one be interrupted.
    """

    bundle: Bundle
    settings: Settings
    versions: Mapping[str, str]
    timings: str | None
    hidden: Path
    published: Path
    old: Target | None
    reasons: Reasons
    finished: Mapping[str, Engine]
    keep: bool

    def run(self, progress: Progress) -> tuple[Engine, ...]:
        """All engines, in the order of the graphs."""
        graphs = self.bundle.manifest.graphs
        engines = []
        with Builder(self.settings) as builder:
            for i, graph in enumerate(graphs):

                def tell(done: float, phase: str, i: int = i, name: str = graph.name) -> None:
                    parts = i * PARTS + int(done * PARTS)
                    progress(self.settings.target, parts, len(graphs) * PARTS, f"{name}: {phase}" if phase else name)

                tell(0.0, "")
                engines.append(self._there(graph) or self._build(graph, builder, tell))
        progress(self.settings.target, len(graphs) * PARTS, len(graphs) * PARTS, "")
        return tuple(engines)

    def _there(self, graph: Graph) -> Engine | None:
        if self.old is not None and graph.name not in self.reasons:
            engine = self.old.engine(graph.name)
            shutil.copyfile(self.published / engine.file, self.hidden / engine.file)
            return engine
        return self.finished.get(graph.name)

    def _build(self, graph: Graph, builder: Builder, tell: Callable[[float, str], None]) -> Engine:
        file, out = f"{graph.name}.engine", self.hidden / f"{graph.name}.engine.partial"
        source, manifest = str(self.bundle.path(graph.file)), self.bundle.manifest
        (longest,) = for_text([graph], manifest.text_tokens)
        job = Job(longest, manifest.guidance_rows, source, str(out), self.timings)
        built = builder.build(job, tell)
        engine = Engine(
            graph=graph.name,
            file=file,
            graph_sha256=self._sha256(graph),
            sha256=digest(out),
            size=out.stat().st_size,
            seconds=built.seconds,
            layers=built.layers,
            plugin_layers=built.plugin_layers,
            scratch=built.scratch,
        )
        out.replace(self.hidden / file)
        if self.keep:
            record(self.hidden, make_target(self.settings, self.bundle.folder.name, (engine,), self.versions))
        return engine

    def _sha256(self, graph: Graph) -> str:
        return self.bundle.manifest.files[graph.file].sha256


def _timings(settings: Settings) -> str | None:
    """Where this user keeps what was measured with this library on this kind of GPU."""
    if not load(settings.flavor).has_timing_cache:
        return None
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", this_gpu().name)
    return str(user_cache() / f"{settings.flavor}-{settings.library_version}-{gpu}.timings")


def _compare(bundle: Bundle, settings: Settings, folder: Path, force: bool) -> tuple[Target | None, Reasons]:
    """What is published there, and why which engine has to be built (again)."""
    graphs = bundle.manifest.graphs
    if not folder.exists():
        return None, {graph.name: () for graph in graphs}
    try:
        old = read_target(folder)
    except BackendError as error:
        cause = error.__cause__
        if isinstance(cause, NewerManifest) and not force:
            raise InputError(f"{folder / FILE_NAME}: {cause}, or replace the target with --force") from error
        return None, {graph.name: (f"{FILE_NAME}: {cause or error}",) for graph in graphs}
    if force:
        return old, {graph.name: ("asked for",) for graph in graphs}
    reasons = {graph.name: _why(bundle, settings, folder, old, graph) for graph in graphs}
    return old, {graph: tuple(why) for graph, why in reasons.items() if why}


def _why(bundle: Bundle, settings: Settings, folder: Path, old: Target, graph: Graph) -> list[str]:
    engine = next((engine for engine in old.engines if engine.graph == graph.name), None)
    if engine is None:
        return ["it was not there"]
    why = [str(d) for d in stale(old, engine, settings, bundle.manifest.files[graph.file].sha256)]
    return why or [wrong for wrong in [damage(folder, engine)] if wrong]


def _covers(target: Target, bundle: Bundle) -> bool:
    """Whether there is an engine for each graph and no other."""
    return {engine.graph for engine in target.engines} == {graph.name for graph in bundle.manifest.graphs}


def _finished(bundle: Bundle, settings: Settings, hidden: Path, say: Callable[[str], None]) -> dict[str, Engine]:
    """Engines that an interrupted build left, as far as they are what is wanted now; why others are not, is said."""
    there = {target.engines[0].graph: target for target in recorded(hidden)}
    found, dropped = {}, dict[str, list[str]]()
    for graph in bundle.manifest.graphs:
        if (target := there.get(graph.name)) is None:
            continue
        (engine,) = target.engines
        why = [str(d) for d in stale(target, engine, settings, bundle.manifest.files[graph.file].sha256)]
        if not why and (wrong := damage(hidden, engine)):
            why = [wrong]
        if not why:
            found[graph.name] = engine
        for reason in why:
            dropped.setdefault(reason, []).append(graph.name)
    for reason, graphs in dropped.items():
        say(f"{reason}: what an interrupted build finished of {', '.join(graphs)} is not used")
    return found


def _tell(say: Callable[[str], None], name: str, reasons: Reasons, total: int) -> None:
    """One sentence for every reason, with the engines that it concerns."""
    concerned: dict[str, list[str]] = {}
    for graph, why in reasons.items():
        for reason in why:
            concerned.setdefault(reason, []).append(graph)
    for reason, graphs in concerned.items():
        which = "all engines" if len(graphs) == total else ", ".join(graphs)
        say(f"{name}: {reason}: building {which} again")


def _check_graphs(bundle: Bundle, settings: Settings) -> None:
    """What goes into an engine is what the manifest lists; weights outside are checked where they are read."""
    names = [graph.file for graph in bundle.manifest.graphs]
    for file in [*names, *([WEIGHTS_FILE] if settings.weights == "embedded" else [])]:
        check_file(bundle.folder, file, bundle.manifest.files[file])


def _versions(settings: Settings) -> dict[str, str]:
    packages = {package: version(package) for package in ("nextscale", "onnx")}
    return {**packages, "python": platform.python_version(), settings.flavor: settings.library_version}
