"""The performance suite: who makes the same pictures how fast, and what this machine would allow.

    python benchmarks/bench_suite.py --quick            # make bench: the demo model and VAR-d16, eight minutes
    python benchmarks/bench_suite.py                    # make bench-full: everything, two hours, 40 GB of disk
    python benchmarks/bench_suite.py --only d16 --folder DIR     # DIR keeps checkpoint and bundles for another time

Every subject is measured in a process of its own, all its contenders by turns in rounds that each begin with another;
its figures are written when it is finished, to results/MACHINE/, so that an interrupted run keeps what is done. The
tables in README.md are made of all such files (suite_page.py).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from suite_accuracy import accuracy
from suite_bars import bars
from suite_ground import Ground
from suite_machine import machine_name
from suite_measure import Settings, Tell, measure
from suite_page import shown, write_page
from suite_subjects import SUBJECTS, Subject

from nextscale.compare.machine import this_machine

RESULTS = Path(__file__).resolve().parent / "results"


@contextmanager
def told(title: str) -> Iterator[Tell]:
    """What is being done, shown while it is."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None)

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=f"{title}: {what}", completed=done, total=total or None)

        yield tell


def bench(subject: Subject, settings: Settings, folder: Path, out: Path) -> Path:
    """One subject in this process; what it made of it is at the path that is returned."""
    place = folder / subject.name
    place.mkdir(parents=True, exist_ok=True)
    with told(subject.title) as tell:
        ground = Ground(subject, place, settings.threads, lambda what: tell(what, 0, 0))
        report = measure(subject, ground, settings, tell)
    path = out / f"{subject.name}{'-quick' if settings.quick else ''}.json"
    written(path, report)
    return path


def written(path: Path, report: dict[str, Any]) -> None:
    """The file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".partial")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def chosen(names: list[str] | None, quick: bool) -> list[Subject]:
    """The subjects of those names, or all of a quick or a full run."""
    return [s for s in SUBJECTS if (s.name in names if names else s.quick or not quick)]


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--only", nargs="+", choices=[s.name for s in SUBJECTS], help="these subjects alone; default: all of the run"
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="fewer subjects, contenders and rounds, no batches; kept as NAME-quick.json, which a full run supersedes",
    )
    made.add_argument(
        "--runs", type=int, help="rounds that count, of every contender; default 15, for d36-512 7, with --quick 3"
    )
    made.add_argument("--threads", type=int, default=2, help="of every side, for one pass; default 2")
    made.add_argument(
        "--folder",
        type=Path,
        help="where checkpoints, bundles and targets are made, and found again; default: a folder that is removed",
    )
    made.add_argument("--no-memory", action="store_true", help="leave out the process of its own for each contender")
    made.add_argument(
        "--accuracy",
        type=int,
        metavar="PICTURES",
        help="also judge so many pictures of the demo model at the subjects' shares (2000 take a quarter of an hour)",
    )
    made.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help="folder of results, with a README.md of them; default: the project's own",
    )
    made.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return made


def main() -> None:
    """Measures, writes results and the page, prints bars."""
    options = parser().parse_args()
    out = options.out / machine_name(this_machine())
    settings = Settings(options.quick, options.runs, options.threads, not options.no_memory)
    subjects = chosen(options.only, options.quick)
    if options.child:
        bench(subjects[0], settings, options.folder, out)
        return
    with TemporaryDirectory(prefix="bench-suite-") if options.folder is None else nullcontext(options.folder) as at:
        words = [word for word in sys.argv[1:] if word != "--child"]
        for subject in subjects:
            alone = [*words, "--only", subject.name, "--folder", str(at), "--child"]  # the last of an option counts
            if subprocess.run([sys.executable, __file__, *alone], check=False).returncode:
                raise SystemExit(f"{subject.name} failed; what was finished before it is kept in {out}")
            report = json.loads(
                (out / f"{subject.name}{'-quick' if options.quick else ''}.json").read_text(encoding="utf-8")
            )
            Console().print(*map(shown, bars(report)), sep="\n", soft_wrap=True)
            if options.folder is None:
                shutil.rmtree(Path(at) / subject.name)  # the next one needs the disk
        if options.accuracy:
            accuracy(subjects, options.accuracy, Path(at), out, options.threads)
    write_page(options.out)


if __name__ == "__main__":
    main()
