"""One subject of the suite measured: contenders by turns in one process, rates, a process of its own for each."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import suite_sides
import torch
from machine_rates import rates, reached, roofline
from suite_errors import logit_error, variant_error
from suite_faces import OurSide
from suite_ground import Ground, available
from suite_sides import open_side
from suite_subjects import COMPILED, EAGER, FULL, OURS, Contender, Subject
from watching import watched

from nextscale.compare.latency import times
from nextscale.compare.machine import OtherWork, this_machine
from nextscale.compare.plain import plain
from nextscale.compare.sides import Ask, Run, Side
from nextscale.plan.types import Plan

QUICK_RUNS = 3
BATCH_RUNS = 3  # of batches beside 1, which take as many times as long
LOOK, AT_REST, PATIENCE = 0.02, 0.002, 1.0  # seconds: between looks, of work in one that counts as none, at most
Sides = dict[Contender, Side]
Tell = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class Settings:
    """How much is run. None are the subject's own numbers; ``processes`` are those that memory is measured in."""

    quick: bool = False
    runs: int | None = None
    threads: int = 2
    processes: bool = True
    seed: int = 0

    def rounds(self, subject: Subject) -> int:
        """Rounds that count."""
        return self.runs or (QUICK_RUNS if self.quick else subject.runs)

    def pictures(self, subject: Subject) -> int:
        """Pictures of ours, those of the rounds among them."""
        return self.rounds(subject) if self.quick or self.runs else max(subject.pictures, subject.runs)

    def batches(self, subject: Subject) -> tuple[int, ...]:
        """Batches beside 1, in rounds of their own."""
        return () if self.quick else subject.batches


@dataclass
class Seen:
    """What a contender's pictures took: runs, and ours' seconds beside graphs and noise."""

    runs: list[Run]
    own: list[float]
    noise: list[float]

    def summary(self, counted: int) -> dict[str, Any]:
        """Medians and quartiles of the first ``counted`` runs, which the others shared; percentiles of all."""
        shared, totals = self.runs[:counted], [run.total for run in self.runs]
        graphs = {name: asdict(times([run.seconds[name] for run in shared])) for name in shared[0].seconds}
        p50, p99 = np.quantile(totals, (0.5, 0.99))
        found: dict[str, Any] = {
            "picture": asdict(times([run.total for run in shared])),
            "transformer": asdict(times([run.total - run.seconds["decode"] for run in shared])),
            "graphs": graphs,
            "latency": {"p50": float(p50), "p99": float(p99), "pictures": len(totals)},
        }
        if self.own:
            found["own"] = {**asdict(times(self.own)), "noise": float(np.median(self.noise))}
        return found


def measure(subject: Subject, ground: Ground, settings: Settings, tell: Tell) -> dict[str, Any]:
    """Everything of one subject, as JSON has it."""
    wanted = subject.quick if settings.quick else subject.contenders
    contenders, left_out = available(subject, wanted)
    if settings.quick and (dropped := [str(each) for each in subject.contenders if each not in wanted]):
        left_out.append(f"a quick run leaves out {', '.join(dropped)}")
    torch.set_num_threads(settings.threads)
    places = {each: ground.place(each) for each in contenders}
    other_work, opener = OtherWork(), ground.opener()
    plans = {each: ground.plan(each) for each in contenders}
    ask = asked(plans[contenders[0]], settings.seed)

    def opened(each: Contender, batch: int = 1) -> Side:
        return open_side(each.side, plans[each], places[each], opener, batch)

    sides = {each: opened(each) for each in contenders}
    parity, errors = first_round(sides, subject, ask, tell)
    rounds, pictures = settings.rounds(subject), settings.pictures(subject)
    seen = by_turns(sides, ask, rounds, "rounds", tell)
    ours = {each: side for each, side in sides.items() if each.side == OURS}
    for each, more in by_turns(ours, replace(ask, seed=1000), pictures - rounds, "pictures of ours", tell).items():
        for name in ("runs", "own", "noise"):
            getattr(seen[each], name).extend(getattr(more, name))
    precisions = {each.variant: subject.variant(each.variant).precision for each in contenders}
    found = rates(plans[contenders[0]], settings.threads, integers="int8" in precisions.values())
    rooflines = {
        name: roofline(subject.plan(subject.variant(name)), reached(found), precision=precision)
        for name, precision in precisions.items()
    }
    del sides, ours
    gc.collect()
    batches = throughput(subject, contenders, opened, ask, settings, tell)
    processes = {}
    for i, each in enumerate(contenders if settings.processes else ()):
        tell("processes", i, len(contenders))
        task = suite_sides.task_of(each, plans[each], places[each], opener, ask)
        processes[str(each)] = alone(task)
    report = {
        "subject": subject.name,
        "title": subject.title,
        "quick": settings.quick,
        "machine": asdict(this_machine(other_work)),
        "settings": {"threads": settings.threads, "runs": rounds, "seed": settings.seed, **asked_of(ask)},
        "grids": [step.grid for step in plans[contenders[0]].steps],
        "variants": [
            {"name": v.name, "precision": v.precision, "methods": subject.plan(v).methods, "accuracy": v.accuracy}
            for v in subject.variants
            if any(each.variant == v.name for each in contenders)
        ],
        "contenders": [asdict(each) for each in contenders],
        "left_out": left_out,
        "seen": {str(each): one.summary(rounds) for each, one in seen.items()},
        "parity": parity,
        "errors": errors,
        "batches": batches,
        "processes": processes,
        "made": ground.made(),
        "rates": found,
        "roofline": rooflines,
    }
    made: dict[str, Any] = plain(report)
    return made


def asked(plan: Plan, seed: int) -> Ask:
    """One picture by the plan's own settings."""
    chosen = {"guidance_scale": 1.5, "top_p": 1.0, "temperature": 1.0, **dict(plan.defaults)}
    return Ask((1,), seed, chosen["guidance_scale"], chosen["top_p"], chosen["temperature"])


def asked_of(ask: Ask) -> dict[str, Any]:
    """What every contender was asked, but for seed and classes."""
    return {name: getattr(ask, name) for name in ("guidance_scale", "top_p", "temperature")}


def first_round(sides: Sides, subject: Subject, ask: Ask, tell: Tell) -> tuple[dict[str, float], dict[str, Any]]:
    """A round that does not count: everyone under the tokens of our eager model, or of ours where it is not there.

    Returns how far logits are from that reference's, by contender, and what each variant makes of the full model's
    picture.
    """
    parity, errors = {}, {}
    for variant in dict.fromkeys(each.variant for each in sides):
        those = {each: side for each, side in sides.items() if each.variant == variant}
        reference = next((e for e in those if e.side == EAGER), next(e for e in those if e.side in (OURS, EAGER)))
        wanted = those[reference].run(ask, logits=True)
        for i, (each, side) in enumerate(those.items()):
            tell(f"first round, {variant}", i, len(those))
            for _ in range(side.settles):
                side.run(ask)
            if each != reference:
                parity[str(each)] = logit_error(wanted, side.run(replace(ask, tokens=wanted.tokens), logits=True))
    full, plan = sides.get(Contender(OURS, FULL)), subject.plan(subject.variant(FULL))
    for each, side in sides.items():
        if each.side == OURS and each.variant != FULL and isinstance(side, OurSide) and isinstance(full, OurSide):
            errors[each.variant] = variant_error(full, side, plan, ask)
    return parity, errors


def by_turns(sides: Sides, ask: Ask, rounds: int, what: str, tell: Tell) -> dict[Contender, Seen]:
    """So many rounds, each of another seed and begun by another contender."""
    names, seen = list(sides), {each: Seen([], [], []) for each in sides}
    for turn in range(rounds):
        tell(what, turn, rounds)
        at = turn % len(names)
        for each in (*names[at:], *names[:at]):
            at_rest()
            side, one = sides[each], seen[each]
            run = side.run(replace(ask, seed=ask.seed + turn))
            one.runs.append(replace(run, tokens=(), pictures=run.pictures[:0]))
            if isinstance(side, OurSide):
                one.own.append(run.total - side.spent.graphs - side.spent.noise)
                one.noise.append(side.spent.noise)
    return seen


def at_rest() -> None:
    """Waits until no thread of this process works: ONNX Runtime's default ones spin a tenth of a second for more."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(LOOK)
        if time.process_time() - before < AT_REST:
            return


def throughput(
    subject: Subject,
    contenders: Sequence[Contender],
    opened: Callable[[Contender, int], Side],
    ask: Ask,
    settings: Settings,
    tell: Tell,
) -> dict[str, dict[str, Any]]:
    """Seconds of whole batches, by number of pictures; each contender has a run that does not count."""
    found: dict[str, dict[str, Any]] = {}
    chosen = [e for e in contenders if e.side in subject.batched and e.side != COMPILED and e.variant == FULL]
    for batch in settings.batches(subject):
        many = replace(ask, labels=tuple(i % 10 for i in range(batch)))
        sides = {each: opened(each, batch) for each in chosen}
        by_turns(sides, many, 1, f"batches of {batch}, first", tell)
        seen = by_turns(sides, many, min(BATCH_RUNS, settings.rounds(subject)), f"batches of {batch}", tell)
        found[str(batch)] = {str(each): asdict(times([run.total for run in one.runs])) for each, one in seen.items()}
        del sides
        gc.collect()
    return found


def alone(task: str) -> dict[str, Any]:
    """A side in a process of its own: seconds of opening and of its first picture, the highest Pss."""
    seen = watched([sys.executable, suite_sides.__file__], task)
    told: dict[str, Any] = json.loads(seen.output.splitlines()[-1])
    return {**told, "pss": seen.pss, "anonymous": seen.anonymous}
