"""``nextscale build``: from a bundle to engines for GPUs, in this machine or not, or to the target of this CPU."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli.errors import INTERRUPTED, needing
from nextscale.cli.options import BundleFolder, Json
from nextscale.plan.errors import InputError, NextscaleError

if TYPE_CHECKING:
    from nextscale.runtime.backends.tensorrt.build import Report
    from nextscale.runtime.bundle import Bundle
    from nextscale.runtime.targets.manifest import Settings

BUILDER = "The builder"


class Flavor(StrEnum):
    """What builds: a TensorRT, or ONNX Runtime for this CPU."""

    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"
    onnxruntime_cpu = "onnxruntime-cpu"


class Weights(StrEnum):
    """Where an engine's weights are."""

    inputs = "inputs"
    embedded = "embedded"


class Restore(StrEnum):
    """What restores pruned tokens."""

    plugin = "plugin"
    function = "function"


class Interrupted(NextscaleError):
    """A build that was stopped."""

    exit_status = INTERRUPTED


def build(
    bundle: BundleFolder,
    flavor: Annotated[
        Flavor,
        typer.Option(
            help="tensorrt-rtx: RTX cards, on any machine. tensorrt: any GPU, on that GPU. onnxruntime-cpu: this CPU."
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="SM,...", help="GPUs, such as sm86,sm89.", show_default="this GPU"),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", "-b", metavar="N,...", help="Pictures in a pass.")] = "1",
    weights: Annotated[Weights, typer.Option(help="Fed from one copy, or a copy in every engine.")] = Weights.inputs,
    restore: Annotated[
        Restore | None,
        typer.Option(
            help="What restores pruned tokens.", show_default="plugin; function for tensorrt-rtx and before sm80"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Put targets there.", show_default="BUNDLE.targets"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again what is up to date.")] = False,
    level: Annotated[
        int, typer.Option(min=0, max=5, help="How long the builder may search.", rich_help_panel=BUILDER)
    ] = 3,
    tf32: Annotated[
        bool, typer.Option("--tf32", help="Let float32 products use TF32.", rich_help_panel=BUILDER)
    ] = False,
    json: Json = False,
) -> None:
    """Build a bundle for the machine that runs it, beside the bundle: engines for GPUs, or packed weights for this CPU.

    \b
    nextscale build engines/mine --flavor onnxruntime-cpu
    nextscale build engines/mine --flavor tensorrt-rtx --target sm86,sm89
    nextscale build engines/mine --flavor tensorrt --batch 1,4

    Only what is missing or out of date is built. Ctrl-C keeps the engines
    that are finished for the next build, and nothing half-written.
    """
    from nextscale.runtime.bundle import open_bundle

    if flavor is Flavor.onnxruntime_cpu:
        from nextscale.cli.pack import pack

        _refuse_options(
            target=target,
            batch=batch != "1",
            weights=weights is Weights.embedded,
            restore=restore,
            level=level != 3,
            tf32=tf32,
        )
        pack(open_bundle(bundle, verify="size"), out, force, json)
        return
    from nextscale.runtime.backends.tensorrt.library import load
    from nextscale.runtime.backends.tensorrt.wishes import Wishes, choose_targets, settings_for

    wishes = Wishes(read_batch(batch), weights.value, restore.value if restore else None, level, tf32)
    opened = open_bundle(bundle, verify="size")
    library = load(flavor.value)
    targets = choose_targets(library, read_targets(target))
    wanted = [settings_for(opened, library, sm, wishes) for sm in targets]
    with needing("rtx" if flavor is Flavor.tensorrt_rtx else "tensorrt"):
        if weights is Weights.embedded:
            _tell_cost(opened, len(wanted))
        start = time.monotonic()
        reports = _build(opened, wanted, out, force)
    _print(opened, reports, time.monotonic() - start, json)


def _refuse_options(**given: object) -> None:
    """What concerns engines says nothing of packed weights."""
    if meant := [f"--{name}" for name, value in given.items() if value]:
        raise InputError(f"{', '.join(meant)} is of engines for GPUs: onnxruntime-cpu packs for this CPU and any batch")


def read_batch(text: str) -> tuple[int, ...]:
    """``1,4``: distinct numbers from 1 up."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 2**16 for part in parts):
        raise InputError(f"--batch is a list of numbers from 1 up, such as 1,4; found {text!r}")
    if len({int(part) for part in parts}) != len(parts):
        raise InputError(f"a batch size stands twice in {text!r}")
    return tuple(sorted(int(part) for part in parts))


def read_targets(text: str | None) -> tuple[str, ...]:
    """``sm86,sm89``, in either case; nothing for None."""
    parts = tuple(part.strip().lower() for part in text.split(",")) if text is not None else ()
    if not all(parts):
        raise InputError(f"--target is a list of GPUs such as sm86,sm89; found {text!r}")
    return parts


def _tell_cost(bundle: Bundle, targets: int) -> None:
    from nextscale.cli.output import size_text
    from nextscale.runtime.backends.tensorrt.wishes import embedded_sizes
    from nextscale.runtime.manifest import WEIGHTS_FILE

    sizes = embedded_sizes(bundle)
    once = bundle.manifest.files[WEIGHTS_FILE].size
    each = f", for each of {targets} targets" if targets > 1 else ""
    sys.stderr.write(
        f"weights embedded: {len(sizes)} engines hold {size_text(sum(sizes.values()))} of weights together, on disk "
        f"and on the GPU{each}; as inputs they are there once, {size_text(once)}\n"
    )


def _build(bundle: Bundle, wanted: list[Settings], out: Path | None, force: bool) -> list[Report]:
    from nextscale.cli.progress import Progress
    from nextscale.runtime.backends.tensorrt.build import build_target, kept
    from nextscale.runtime.targets.places import writable_place

    place = (out if out is not None else writable_place(bundle)).resolve()
    reports = []
    with Progress() as progress:
        for settings in wanted:
            try:
                reports.append(build_target(bundle, settings, place, progress, force, tell))
            except KeyboardInterrupt as error:
                _say_done(reports)
                then = "with --force nothing is" if force else _kept(kept(bundle, settings, place))
                raise Interrupted(f"interrupted; nothing half-written was kept, {then}") from error
            except NextscaleError:
                _say_done(reports)
                raise
    return reports


def _say_done(reports: list[Report]) -> None:
    """What stands although a later target failed."""
    for report in reports:
        tell(f"{report.folder}: {'built' if report.reasons else 'up to date'}")


def _kept(count: int) -> str:
    match count:
        case 0:
            return "no engine was finished"
        case 1:
            return "the one engine that is finished goes into the next build"
    return f"the {count} engines that are finished go into the next build"


def tell(sentence: str) -> None:
    """One line on stderr, while the work goes on."""
    sys.stderr.write(f"{sentence}\n")


def _print(bundle: Bundle, reports: list[Report], seconds: float, json: bool) -> None:
    from nextscale.cli.output import print_json, say, size_text

    if json:
        print_json({"bundle": str(bundle.folder), "seconds": seconds, "targets": [_data(report) for report in reports]})
        return
    for report in reports:
        engines, made = report.target.engines, len(report.reasons)
        size = size_text(sum(engine.size for engine in engines))
        if not made:
            say(f"{report.folder}: up to date, {len(engines)} engines, {size}; nothing was built")
            continue
        counts = {
            "built": made - len(report.resumed),
            "finished by the build before": len(report.resumed),
            "up to date": len(engines) - made,
        }
        said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        say(f"{report.folder}: {len(engines)} engines ({said}), {size}, {report.seconds:.0f} s")
    if reports and reports[0].target.weights == "inputs":
        once = size_text(bundle.manifest.files["weights.safetensors"].size)
        say(f"weights stay in {bundle.folder}, once for all of them: {once}")


def _data(report: Report) -> dict[str, Any]:
    from nextscale.runtime import strict

    target = strict.write(report.target)
    return {
        "folder": str(report.folder),
        "seconds": report.seconds,
        "bytes": sum(engine.size for engine in report.target.engines),
        "built": {graph: list(why) for graph, why in report.reasons.items()},
        "resumed": list(report.resumed),
        "target": target,
    }
