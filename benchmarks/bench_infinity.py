"""What an Infinity of 125M costs on a CPU: upstream's eager code, our eager model and the runtime, in one process.

    python benchmarks/bench_infinity.py                 # three quarters of an hour on two cores of their own
    python benchmarks/bench_infinity.py --quick         # 0.25M alone, one run

Plain and with FastVAR, at 512 and 1024 px, drawn weights, float32, one picture with guidance; the transformer alone. A
first round of each recipe is held against our eager model under its bits: how far logits are apart. Then all sides run
by turns, each time another first. Rates of matrix products and of copying are taken in the same run, for a roofline of
the plan. Memory is that of a process of its own for each side. Bars and tables: infinity_bars.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import infinity_sides
import numpy as np
import torch
from infinity_bars import PARITY, PLAIN, bars, tables
from infinity_sides import EAGER, NAMES, RUNTIME, UPSTREAM, Ask, EagerSide, Run, RuntimeSide, Side, UpstreamSide
from machine_rates import rates, reached, roofline
from suite_machine import machine_name
from watching import watched

from nextscale.compare.latency import times
from nextscale.compare.machine import OtherWork, this_machine
from nextscale.compare.plain import plain
from nextscale.compare.stability import DISTURBANCE, disturbed
from nextscale.export.bundle import Options, export_bundle
from nextscale.export.draw import draw_checkpoint
from nextscale.export.graphs import Traced
from nextscale.plan.recipes import Recipe, plan_for, recipe
from nextscale.plan.types import Plan
from nextscale.runtime.backends.packed.build import build_packed
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import Recipe as Named

RESULTS = Path(__file__).parent / "results"
QUICK = ("infinity-125m-0.25m", "infinity-125m-0.25m-fastvar")
EVERY = (*QUICK, PLAIN, f"{PLAIN}-fastvar", f"{PLAIN}-fastvar13")
TRIALS = 4  # of disturbing the eager model, where logits are too far apart


@dataclass
class Ground:
    """Where checkpoint and bundles are or go, how bundles are checked, and with how many threads all sides run.

    ``text_room`` is the longest text that graphs are made for; None is what the model was trained for.
    """

    folder: Path
    check: str = "signatures"
    threads: int = 2
    ask: Ask = field(default_factory=Ask)
    text_room: int | None = None
    traced: Traced = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What a result is told with."""
        return {"threads": self.threads, "check": self.check, **asdict(self.ask)}

    def files(self, chosen: Recipe) -> tuple[Path, Path]:
        """The drawn checkpoint, which all schedules share."""
        there = self.folder / "drawn"
        if not there.exists():
            return draw_checkpoint(chosen.model, chosen.tokenizer, chosen.schedule, there, form="safetensors")
        (vae,) = there.glob("infinity_vae*")
        (model,) = {path for path in there.glob("infinity_*") if path != vae}
        return model, vae

    def bundle(self, chosen: Recipe) -> Path:
        """The bundle of a recipe, exported and packed now unless it is there."""
        out = self.folder / chosen.name
        if not out.exists():
            files = self.files(chosen)
            checkpoint = infinity_sides.checkpoint_for(files, chosen.schedule, self.text_room)
            plan = plan_for(chosen, checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)
            options = Options(plan, Named(chosen.name, chosen.version), check=self.check)
            export_bundle(checkpoint, options, out, lambda stage, done, total, what: None, self.traced)
        build_packed(open_bundle(out), out.with_name(f"{out.name}.targets"), lambda stage, done, total, what: None)
        return out


def measure(chosen: Recipe, ground: Ground, runs: int, memory: bool = True) -> dict[str, Any]:
    """One recipe: parity, times, rates, memory."""
    say(chosen, "export")
    bundle, files = ground.bundle(chosen), ground.files(chosen)
    sides = opened(files, bundle, ground.threads)
    plan: Plan = sides[RUNTIME].plan
    say(chosen, "parity")
    first = first_round(sides, ground.ask)
    moves = eager_moves(sides[EAGER], first, ground.ask)
    counted = [first] if runs == 1 else [one_round(sides, ground.ask, turn, chosen) for turn in range(runs)]
    say(chosen, "rates")
    found = rates(plan, ground.threads)
    parity = {name: distance(first[EAGER], first[name]) for name in (RUNTIME, UPSTREAM)}
    del sides
    gc.collect()
    text = plan.model().text
    return {
        "recipe": chosen.name,
        "grids": [step.grid for step in plan.steps],
        "kept": [
            min(sub.kept or step.tokens_in for layer in step.layers for sub in layer.sub_layers) for step in plan.steps
        ],
        "text_room": text.tokens if text else None,
        "sides": {name: summed_up([made[name] for made in counted]) for name in NAMES},
        "parity": {**parity, EAGER: {"moves": moves}},
        "rates": found,
        "roofline": roofline(plan, reached(found), ground.ask.text_tokens),
        "memory": {name: peak(name, plan, files, bundle, ground, chosen) for name in NAMES} if memory else {},
    }


def opened(files: tuple[Path, Path], bundle: Path, threads: int) -> dict[str, Any]:
    """All sides in this process, over one copy of PyTorch's weights."""
    torch.set_num_threads(threads)
    runtime = RuntimeSide(bundle, threads)
    checkpoint = infinity_sides.checkpoint_of(files, runtime.plan)
    upstream, eager = UpstreamSide(runtime.plan, checkpoint), EagerSide(runtime.plan, checkpoint)
    return {UPSTREAM: upstream, EAGER: eager, RUNTIME: runtime}


def first_round(sides: dict[str, Any], ask: Ask) -> dict[str, Run]:
    """Our eager model's own bits, and the logits of all sides under them."""
    eager = sides[EAGER].run(ask, logits=True)
    others = {name: sides[name].run(ask, eager.tokens, logits=True) for name in NAMES if name != EAGER}
    return {EAGER: eager, **others}


def one_round(sides: dict[str, Side], ask: Ask, turn: int, chosen: Recipe) -> dict[str, Run]:
    """Every side once, each sampling for itself; the turn says who is first."""
    made = {}
    for i in range(len(NAMES)):
        name = NAMES[(turn + i) % len(NAMES)]
        made[name] = sides[name].run(ask)
        say(chosen, f"{name} {made[name].total:.2f} s")
    return made


def distance(wanted: Run, got: Run) -> dict[str, float]:
    """The largest error of logits in units of max(1, std) of the step's, and the share of them beyond the tolerance."""
    worst, beyond, count = 0.0, 0, 0
    for a, b in zip(wanted.logits, got.logits, strict=True):
        errors = np.abs(b - a) / max(1.0, float(a.std()))
        worst = max(worst, float(errors.max()) if np.isfinite(errors).all() else np.inf)
        beyond, count = beyond + int((errors > PARITY).sum()), count + errors.size
    return {"error": worst, "beyond": beyond / count}


def eager_moves(side: EagerSide, first: dict[str, Run], ask: Ask) -> float | None:
    """Where the runtime is too far away: how far the eager model's own logits move when rounding disturbs it."""
    eager = first[EAGER]
    if distance(eager, first[RUNTIME])["error"] <= PARITY:
        return None
    moved = 0.0
    for trial in range(TRIALS):
        with disturbed(side.eager.var, DISTURBANCE["fp32"], trial):
            moved = max(moved, distance(eager, side.run(ask, eager.tokens, logits=True))["error"])
        if moved > PARITY:
            break
    return moved


def summed_up(runs: Sequence[Run]) -> dict[str, Any]:
    """Of one side."""
    return {
        "total": times([run.total for run in runs]),
        "begin": statistics.median(run.begin for run in runs),
        "steps": [statistics.median(each) for each in zip(*(run.steps for run in runs), strict=True)],
        "noise": statistics.median(run.noise for run in runs),
    }


def peak(
    name: str, plan: Plan, files: tuple[Path, Path], bundle: Path, ground: Ground, chosen: Recipe
) -> dict[str, Any]:
    """The memory of a process that opens one side and makes one picture's code sum."""
    task = infinity_sides.task_of(name, plan, files, bundle, ground.threads, ground.ask)
    seen = watched([sys.executable, infinity_sides.__file__], task)
    say(chosen, f"{name} {seen.pss / 1e6:.0f} MB")
    return {"pss": seen.pss, "anonymous": seen.anonymous}


def say(chosen: Recipe, what: str) -> None:
    """One line while it runs."""
    print(f"{chosen.name}: {what}", flush=True)


def runs_of(name: str, asked: int | None) -> int:
    """How often each side is measured."""
    return asked or (5 if name in QUICK else 3)


def bench_all(
    recipes: Sequence[Recipe], ground: Ground, runs: int | None, out: Path, memory: bool = True
) -> dict[str, Any]:
    """All recipes; each is written when it is finished, in the place of what there is of it."""
    path, started = out / "infinity_125m.json", datetime.now(UTC).isoformat(timespec="seconds")
    report: dict[str, Any] = {"cases": []}
    if path.exists():
        report = json.loads(path.read_text(encoding="utf-8"))
    for chosen in recipes:
        other_work = OtherWork()
        case = plain(measure(chosen, ground, runs_of(chosen.name, runs), memory))
        case |= {"machine": plain(asdict(this_machine(other_work))), "settings": plain(ground.settings())}
        case["run"] = started
        cases = {each["recipe"]: each for each in (*report["cases"], case)}
        report = {"cases": [*cases.values()], "bars": bars([*cases.values()])}
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(tables(report), encoding="utf-8")
    return report


def main() -> None:
    """Measures, prints the tables, writes infinity_125m.json and infinity_125m.md of this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=EVERY, choices=EVERY)
    parser.add_argument("--quick", action="store_true", help="0.25M alone, one run")
    parser.add_argument("--runs", type=int, help="of every side, after one that does not count; default 5, at 1M 3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text", type=int, default=64, help="tokens of the drawn text")
    parser.add_argument("--text-room", type=int, help="longest text that graphs are made for; default 512")
    parser.add_argument(
        "--bundles", type=Path, help="folder for checkpoint and bundles, used again where they are there"
    )
    parser.add_argument("--check", choices=("signatures", "numbers"), default="signatures", help="of exported bundles")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that memory is measured in")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for results, one in it for each machine")
    options = parser.parse_args()
    names, runs = (QUICK, 1) if options.quick else (options.recipe, options.runs)
    out = options.out / machine_name(this_machine())
    try:  # before minutes of work
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {out} cannot be a folder for results: {error.strerror}")
    with (
        TemporaryDirectory(prefix="bench-infinity-") if options.bundles is None else nullcontext(options.bundles) as at
    ):
        ground = Ground(Path(at), options.check, options.threads, Ask(options.text), options.text_room)
        report = bench_all([recipe(name) for name in names], ground, runs, out, not options.no_memory)
    print(tables(report))


if __name__ == "__main__":
    main()
