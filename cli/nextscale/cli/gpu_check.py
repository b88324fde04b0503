"""``nextscale gpu-check``: what works on this machine, whether it is right, and how fast, as one JSON."""

from __future__ import annotations

import json as codec
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli.errors import needing
from nextscale.cli.options import Json
from nextscale.plan.errors import EnvironmentProblem, InputError, ParityError

if TYPE_CHECKING:
    from nextscale.compare.gpu_check.check import Check

BUDGET = 600.0


def gpu_check(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The JSON; an earlier one is replaced.")
    ] = Path("gpu-check.json"),
    backend: Annotated[
        str | None, typer.Option(metavar="NAMES", help="With commas.", show_default="all of this machine")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="float32 and two pictures only, nothing compiled.")] = False,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="What does not fit is not run.")] = BUDGET,
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Holds var.safetensors, vae.safetensors.", show_default="the demo's"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="On the CPU.", show_default="what PyTorch takes")] = None,
    json: Json = False,
) -> None:
    """Check this machine: export the demo, build it, compare every backend with eager PyTorch, time it all.

    \b
    nextscale gpu-check -o gpu-check.json

    Without a GPU, ONNX Runtime is checked on the CPU. What cannot be run is
    in the JSON with its reason. Exit status 4: something that ran is wrong;
    3: no backend's numbers were looked at.
    """
    from nextscale.cli.demo import checkpoint_files
    from nextscale.cli.progress import Progress

    with needing("compare"):
        from nextscale.compare.gpu_check.check import Options, as_data, run_check
    from nextscale.compare.plain import plain

    names = tuple(name.strip() for name in backend.split(",")) if backend is not None else ()
    options = Options(names, quick, budget, threads)
    options.check()
    check_place(out)
    files = checkpoint_files(checkpoint)
    with Progress() as progress:
        check = run_check(files, options, progress)
    text = codec.dumps(plain(as_data(check)), indent=1, allow_nan=False) + "\n"
    write_whole(out, text)
    if json:
        typer.echo(text, nl=False)
    else:
        print_check(check)
        typer.echo(f"written: {out}")
    if check.failed:
        what = "; ".join(f"{f.section} of {' '.join(f.subject.values())}: {f.reason}" for f in check.failed)
        raise ParityError(f"{len(check.failed)} of {len(check.findings)} answers are wrong: {what}")
    if check.passed is None:
        raise EnvironmentProblem(
            f"nothing is proved: no backend's numbers were looked at; {out} says why, above all in its sections "
            "'backend' and 'parity'"
        )


def check_place(path: Path) -> None:
    """Refuse a place that cannot be written, before minutes are spent; leaves nothing there."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: -o names the file to write, such as {path / 'gpu-check.json'}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        TemporaryFile(dir=above).close()
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be written: {above}: {error.strerror or error}") from error


def write_whole(path: Path, text: str) -> None:
    """The file as it is to be, or as it was."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def print_check(check: Check) -> None:
    """A line for each question."""
    from nextscale.cli.output import print_table, say

    rows = []
    for finding in check.findings:
        told = finding.reason or ", ".join(_told(finding.data))
        rows.append((finding.section, " ".join(finding.subject.values()), finding.state, told))
    where = check.gpu["name"] if check.gpu else f"{check.machine.processor}, no GPU"
    print_table(("section", "of", "", ""), rows, title=f"{where}, {check.machine.date}")
    states = [finding.state for finding in check.findings]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    say(f"{counts}, in {check.seconds:.0f} s")
    if check.machine.warning:
        say(check.machine.warning)


def _told(data: Any) -> list[str]:
    """The few figures that a line has room for."""
    from nextscale.cli.output import size_text

    told: dict[str, Callable[[Any], str]] = {
        "error": lambda v: f"worst error {v:.1e}",
        "equal_tokens_forced": lambda v: f"{100 * v:.1f} % equal tokens",
        "largest_difference": lambda v: "verified by its twin" if v is None else f"differs by {v:.1e}",
        "median": lambda v: f"{1e3 * v:.2f} ms",
        "first_run": lambda v: f"first {1e3 * v:.0f} ms",
        "compiling": lambda v: f"compiled in {v:.0f} s",
        "seconds": lambda v: f"{v:.1f} s",
        "bytes": size_text,
        "sum": lambda v: f"{size_text(v)} reserved",
        "device": lambda v: f"{size_text(v)} taken",
        "idle_share": lambda v: f"idle {100 * v:.1f} %",
        "share_of_copy_bandwidth": lambda v: f"{100 * v:.0f} % of copying",
    }
    return [text(data[name]) for name, text in told.items() if name in data and not isinstance(data[name], dict)]
