"""Making a packed target: what it will take, then the graphs one by one, published whole."""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.runtime.backends.onnxruntime import errors_of, first_line, import_onnxruntime
from nextscale.runtime.backends.packed import target as targets
from nextscale.runtime.backends.packed.machine import this_machine
from nextscale.runtime.backends.packed.packing import Packing
from nextscale.runtime.backends.packed.target import FILE_NAME, PRECISIONS, WEIGHTS, Machine, Packed, PackedGraph
from nextscale.runtime.bundle import Bundle, check_file, hash_file
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import WEIGHTS_FILE
from nextscale.runtime.targets.publish import check_place, clear, hidden_folder, publish, reported

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what
# Measured: the packed file against the weights, and what packing takes (VAR-d16 and Infinity 125M, two cores).
SIZE, SECONDS_PER_GB, SECONDS_PER_GRAPH = 2.1, 12.0, 2.0
PROBE = 2**24  # bytes
TEMPORARY = 1.0  # the file of one graph, beside the common one, as a share of the latter


@dataclass(frozen=True)
class Report:
    """A target that stands; ``why`` says why it was made, None where it was up to date."""

    folder: Path
    packed: Packed
    why: str | None
    seconds: float


def build_packed(
    bundle: Bundle,
    place: Path,
    progress: Progress,
    force: bool = False,
    say: Callable[[str], None] = lambda sentence: None,
) -> Report:
    """Packs a bundle for this processor into a folder in ``place``, unless it is there.

    One process packs while others that want the same wait for it. ``say`` hears what it will cost before it begins,
    ``progress`` of every graph. Raises :class:`InputError`, :class:`BackendError`,
    :class:`~nextscale.runtime.errors.BundleError` for a damaged bundle, or
    :class:`~nextscale.plan.errors.EnvironmentProblem` where the disk is full or the place cannot be written.
    """
    start, place, ort = time.monotonic(), place.resolve(), import_onnxruntime()
    targets.import_blake3()  # before minutes of work
    machine = this_machine(str(ort.__version__))
    name = targets.name_for(bundle, machine)
    _check(bundle)
    check_place(place, name, FILE_NAME)

    def waits() -> None:
        say(f"another process is packing {place / name}: waiting for it")

    def up_to_date() -> Report:
        return Report(place / name, targets.read(place / name), None, time.monotonic() - start)

    if _why(bundle, machine, place / name, force) is None:
        return up_to_date()
    with reported(place), hidden_folder(place, name, waits) as hidden:
        clear(hidden)
        why = _why(bundle, machine, place / name, force)
        if why is None:  # another process made it meanwhile
            return up_to_date()
        _tell_cost(bundle, place, say)
        packed = _pack(ort, bundle, machine, hidden, progress, start)
        publish(hidden, place, name)
    return Report(place / name, packed, why, time.monotonic() - start)


def _why(bundle: Bundle, machine: Machine, folder: Path, force: bool) -> str | None:
    """Why the target has to be made; None where it is there and what it should be."""
    if not folder.exists():
        return "it was not there"
    if force:
        return "asked for"
    if other := targets.misfit(folder, bundle, machine):
        return other
    there = targets.read(folder)
    return targets.damage(folder, there, hashed=there.files)


def _tell_cost(bundle: Bundle, place: Path, say: Callable[[str], None]) -> None:
    """Size and time, before any of it is spent; raises where the disk has not so much."""
    weights = bundle.manifest.files[WEIGHTS_FILE].size
    size, seconds = SIZE * weights, SECONDS_PER_GB * weights / 1e9 + SECONDS_PER_GRAPH * len(bundle.manifest.graphs)
    say(
        f"packs {weights / 1e6:,.0f} MB of weights for this processor: about {size / 1e6:,.0f} MB in {place}, "
        f"{seconds:.0f} s on two cores"
    )
    free, needed = shutil.disk_usage(place).free, size * (1 + TEMPORARY)
    if free < needed:
        raise EnvironmentProblem(
            f"{place} has {free / 1e6:,.0f} MB free, and packing takes up to {needed / 1e6:,.0f} MB: make room, or "
            "give another folder with -o"
        )


def _pack(ort: ModuleType, bundle: Bundle, machine: Machine, hidden: Path, progress: Progress, start: float) -> Packed:
    graphs, files = bundle.manifest.graphs, dict[str, Path]()
    try:
        with Packing(ort, bundle, hidden) as packing:
            for i, graph in enumerate(graphs):
                progress(machine.instructions, i, len(graphs), graph.name)
                files[graph.name] = packing.add(graph)
    except errors_of(ort) as error:
        (hidden / "probe").write_bytes(bytes(PROBE))  # a full disk says so here; ONNX Runtime has other words for it
        raise BackendError(
            f"ONNX Runtime {ort.__version__} cannot pack {bundle.folder}: {first_line(error)}"
        ) from error
    progress(machine.instructions, len(graphs), len(graphs), "")
    made = tuple(
        PackedGraph(
            graph.name,
            files[graph.name].name,
            bundle.manifest.files[graph.file].sha256,
            hash_file(files[graph.name]),
            files[graph.name].stat().st_size,
        )
        for graph in graphs
    )
    packed = Packed(
        bundle=bundle.folder.name,
        library_version=machine.library_version,
        instructions=machine.instructions,
        precision=bundle.manifest.precision,
        weights_sha256=bundle.manifest.files[WEIGHTS_FILE].sha256,
        graphs=made,
        weights=targets.Weights(targets.weights_hash(hidden / WEIGHTS), (hidden / WEIGHTS).stat().st_size),
        seconds=round(time.monotonic() - start, 3),
        versions={"nextscale": version("nextscale"), "python": platform.python_version()},
    )
    targets.write(hidden, packed)
    return packed


def _check(bundle: Bundle) -> None:
    """The bundle can be packed, and is whole."""
    if bundle.manifest.precision not in PRECISIONS:
        raise InputError(
            f"{bundle.folder} is in {bundle.manifest.precision}, and only weights in {' or '.join(PRECISIONS)} are "
            f"packed: a CPU computes half precision in float32, through copies; export the bundle in "
            f"{' or '.join(PRECISIONS)}"
        )
    for file in [*(graph.file for graph in bundle.manifest.graphs), WEIGHTS_FILE]:
        check_file(bundle.folder, file, bundle.manifest.files[file])
