"""Collected numbers as the tables that people read; the report and the terminal show the same."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from nextscale.compare.collect import Measured, Record
from nextscale.compare.latency import Times, times
from nextscale.compare.lineup import computed_share
from nextscale.plan.cost import plan_cost
from nextscale.plan.schedules import tokens


@dataclass(frozen=True)
class SideSummary:
    """One side. ``faster`` is eager-in-full's median time over its own, ``flops`` of one run, ``computed`` the share of
    the full chain's tokens. ``memory`` is the peak in bytes, ``own`` what of it is not imported libraries; ``device``
    what it takes on the GPU; None where not measured. ``first`` are the seconds of its first run, which may compile;
    None without a warm-up. ``psnr`` in dB and ``ssim`` are means over pictures against eager in full: None where every
    picture is the same, or smaller than SSIM's window.
    """

    name: str
    eager: bool
    total: Times
    faster: float
    flops: float
    computed: float
    memory: int | None
    own: int | None
    device: int | None
    first: float | None
    psnr: float | None
    ssim: float | None


@dataclass(frozen=True)
class StepSummary:
    """One step of one bundle: worst over pictures of its errors, means of its shares of equal tokens."""

    graph: str
    grid: str
    tokens: int
    absolute: float
    relative: float
    error: float
    equal_forced: float
    equal_free: float


def side_summaries(measured: Measured) -> list[SideSummary]:
    """Every side, in order."""
    base = times(measured.full.totals).median
    return [_side(record, base, measured.options.batch) for record in measured.records.values()]


def step_summaries(measured: Measured, bundle: str) -> list[StepSummary]:
    """Every step of a bundle."""
    pictures, found = measured.parities[bundle], []
    for i, step in enumerate(measured.records[bundle].spec.plan.steps):
        steps = [picture.steps[i] for picture in pictures]
        found.append(
            StepSummary(
                graph=f"step_{step.order:02d}",
                grid=f"{step.grid[0]}×{step.grid[1]}",
                tokens=tokens(step.grid),
                absolute=max(s.absolute for s in steps),
                relative=max(s.absolute / s.spread if s.spread else 0.0 for s in steps),
                error=max(s.error for s in steps),
                equal_forced=fmean(s.equal_forced for s in steps),
                equal_free=fmean(s.equal_free for s in steps),
            )
        )
    return found


def _side(record: Record, base: float, batch: int) -> SideSummary:
    spec, total, used = record.spec, times(record.totals), record.memory
    noisy = [found.psnr for found in record.likeness if found.psnr is not None]
    alike = [found.ssim for found in record.likeness if found.ssim is not None]
    return SideSummary(
        name=spec.name,
        eager=spec.bundle is None,
        total=total,
        faster=base / total.median,
        flops=plan_cost(spec.plan, batch, spec.precision).total_flops,
        computed=computed_share(spec.plan),
        memory=None if used is None else used.peak,
        own=None if used is None else used.peak - used.before,
        device=None if used is None else used.device,
        first=record.warm_up[0] if record.warm_up else None,
        psnr=fmean(noisy) if noisy else None,
        ssim=fmean(alike) if alike else None,
    )
