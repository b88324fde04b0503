"""Pictures of one bundle in eager PyTorch and on a backend: parity, time, memory, and the device's idle time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from nextscale.compare.compiled import CompiledEager
from nextscale.compare.gpu_check.findings import Failed, Figures, NotRun
from nextscale.compare.gpu_check.subjects import Way
from nextscale.compare.judge import verdict
from nextscale.compare.latency import times
from nextscale.compare.parity import PictureParity, forced_runs, picture_parities
from nextscale.compare.sides import Ask, BundleSide, EagerSide, Run, Side
from nextscale.compare.stability import explained
from nextscale.export.bundle import prepared
from nextscale.export.checkpoint import Checkpoint
from nextscale.export.verify import TOLERANCES
from nextscale.plan.types import Plan
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.memory import MemoryReport
from nextscale.runtime.pipeline import Pipeline

# Its rounding is 8 times float16's.
ALLOWED = {**TOLERANCES, "bf16": 8 * TOLERANCES["fp16"]}


@dataclass
class Reference:
    """Eager PyTorch's pictures of a plan in a precision: one run for each ask, with logits."""

    plan: Plan
    precision: str
    side: EagerSide
    runs: tuple[tuple[Ask, Run], ...]


def make_reference(checkpoint: Checkpoint, plan: Plan, precision: str, asks: Sequence[Ask]) -> Reference:
    """The reference, run."""
    side = EagerSide(prepared(checkpoint, plan, precision))
    return Reference(plan, precision, side, tuple((ask, side.run(ask, logits=True)) for ask in asks))


def open_side(way: Way, bundle: Bundle, batch: int = 1) -> BundleSide:
    """The bundle on a backend. Raises :class:`NotRun` for a precision that it does not have."""
    backend, precision = way.make(), bundle.manifest.precision
    if precision not in backend.precisions:
        raise NotRun(f"{way.name} does not compute {precision} on {backend.device}")
    return BundleSide(Pipeline.open(bundle.folder, backend, batch_sizes=(batch,)))


def parity(reference: Reference, side: Side) -> Figures:
    """Logits of every step under the reference's tokens, pixels, and how often both draw the same tokens."""
    found, tolerance = list[PictureParity](), ALLOWED[reference.precision]
    for ask, wanted in reference.runs:
        free = side.run(ask)
        stepwise, whole = forced_runs(side, ask, wanted)
        pictures = picture_parities(reference.plan, ask, wanted, free, stepwise, whole)
        found += explained(pictures, reference.side, ask, wanted, reference.precision, tolerance)
    judged = verdict("it", found, tolerance)
    steps = [step for picture in found for step in picture.steps]
    data = {
        "error": judged.error,
        "where": judged.where,
        "tolerance": judged.tolerance,
        "pictures": len(found),
        "within": judged.within,
        "undecided": judged.undecided,
        "whole_from_stepwise": max(picture.apart for picture in found),
        "equal_tokens_forced": fmean(step.equal_forced for step in steps),
        "equal_tokens_free": fmean(step.equal_free for step in steps),
        "logit_errors": [max(picture.steps[i].error for picture in found) for i in range(len(reference.plan.steps))],
    }
    if not judged.held:
        raise Failed(judged.sentence.removeprefix("it: "), data)
    return data


def latency(side: Side, ask: Ask, runs: int) -> Figures:
    """Seconds of a picture, after as many runs as the side needs to settle."""
    first = [side.run(ask).total for _ in range(max(1, side.settles))]
    return {
        "first_run": first[0],
        "images": len(ask.labels),
        **asdict(times([side.run(ask).total for _ in range(runs)])),
    }


def compiling(eager: CompiledEager, ask: Ask, runs: int, tick: Callable[[], None]) -> Figures:
    """The same through ``torch.compile``: a run in which all is compiled, ``tick`` called after every step, and times.

    All runs are the same code, so that nothing is compiled twice.
    """
    side, started = EagerSide(eager), time.perf_counter()
    side.run(ask, tick=tick)
    return {"compiling": time.perf_counter() - started, **latency(side, ask, runs)}


def memory(report: MemoryReport, taken: int | None) -> Figures:
    """What is reserved by cause, and what the device says was ``taken`` meanwhile; None on a CPU.

    ``sum`` is what was known beforehand: what was only seen to go is ``beside``, and part of the sum where the backend
    keeps its own scratch, which is in it.
    """
    known = report.total - (0 if report.scratch is None else report.taken)
    causes = {**report.fixed, **report.slot, "scratch": report.scratch, "beside": report.taken}
    data: dict[str, Any] = {"by_cause": causes, "sum": known, "images": report.images}
    return data if taken is None else {**data, "device": taken, "device_over_sum": taken / known}


def without_torch(free: int | None) -> int | None:
    """Free bytes of the device as if PyTorch held none: what the reference reserves is no backend's."""
    return None if free is None else free + torch.cuda.memory_reserved()


def idle(run: Callable[[], object]) -> Figures:
    """The share of a picture in which the GPU does nothing, between and within steps, and what it does longest."""
    from torch.profiler import ProfilerActivity, profile

    run()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    events = [e for e in profiled.events() or () if e.device_type.name == "CUDA"]
    spans = [(float(e.time_range.start), float(e.time_range.end)) for e in events]
    if not spans:
        raise NotRun("the profiler sees no work on the GPU: CUPTI is not there, or not allowed")
    busy, whole = covered(spans), max(end for _, end in spans) - min(start for start, _ in spans)
    longest = most([(str(e.name), end - start) for e, (start, end) in zip(events, spans, strict=True)])
    share = 1 - busy / whole if whole else 0.0
    return {"busy": busy * 1e-6, "span": whole * 1e-6, "idle_share": share, "longest": longest}


def most(work: Sequence[tuple[str, float]], count: int = 8) -> list[dict[str, Any]]:
    """What takes longest, by name: microseconds to seconds, how often, and its share of all."""
    total, seconds = sum(length for _, length in work), dict[str, float]()
    for name, length in work:
        seconds[name] = seconds.get(name, 0.0) + length
    ordered = sorted(seconds.items(), key=lambda item: -item[1])[:count]
    calls = [name for name, _ in work]
    return [{"name": n, "seconds": s * 1e-6, "calls": calls.count(n), "share": s / total} for n, s in ordered]


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of spans."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
