"""A plan as tables of text: what ``nextscale plan`` prints, for any renderer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nextscale.plan.cost import memory, plan_cost
from nextscale.plan.devices import Device
from nextscale.plan.types import Plan, Step


@dataclass(frozen=True)
class Table:
    """``rows`` have one cell per column; ``numeric[i]`` says that column i is set flush right."""

    title: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]


def step_table(plan: Plan, device: Device | None, images: int = 1, precision: str = "fp16") -> Table:
    """Every graph with its tokens, kept tokens, past rows, GFLOP and MB moved; the last row adds up.

    With a device also its roofline time.
    """
    cost = plan_cost(plan, images, precision)
    steps = {f"step_{step.order:02d}": step for step in plan.steps}
    rows = []
    for graph in cost.graphs:
        seconds = device.seconds(graph.total_flops, graph.total_bytes, precision) if device else None
        rows.append(
            (graph.name, *_tokens(steps.get(graph.name)), *_cost(graph.total_flops, graph.total_bytes, seconds))
        )
    totals = _cost(cost.total_flops, cost.total_bytes, cost.seconds(device) if device else None)
    tokens = f"{sum(step.tokens_in for step in plan.steps)}"
    rows.append(("all", "", "", tokens, "", "", *totals))
    pictures = "1 picture" if images == 1 else f"{images} pictures"
    columns = ("graph", "scale", "grid", "tokens", "kept", "past rows", "GFLOP", "MB moved")
    return Table(
        title=f"{plan.name}: {pictures}, {precision}" + (f", roofline of {device.name}" if device else ""),
        columns=(*columns, "ms at least") if device else columns,
        numeric=(False, *(True for _ in columns[1:]), *((True,) if device else ())),
        rows=tuple(rows),
    )


def memory_table(plan: Plan, images: int = 1, precision: str = "fp16") -> Table:
    """Memory by cause, in MB (10^6 bytes)."""
    report = memory(plan, images, precision)
    rows = tuple((cause, figure(size / 1e6)) for cause, size in report.items())
    return Table(f"{plan.name}: memory", ("cause", "MB"), (False, True), rows)


def kept_counts(step: Step) -> set[int]:
    """Every count of kept tokens in a step; empty where nothing is pruned."""
    return {sub.kept for layer in step.layers for sub in layer.sub_layers if sub.kept is not None}


def kept_text(step: Step) -> str:
    """Kept tokens of a step: ``all``, or how many, in how many of its layers where not in every one."""
    pruned = [layer for layer in step.layers if any(sub.kept is not None for sub in layer.sub_layers)]
    if not pruned:
        return "all"
    kept = span(kept_counts(step))
    return kept if len(pruned) == len(step.layers) else f"{kept} in {len(pruned)} of {len(step.layers)} layers"


def span(numbers: Iterable[int]) -> str:
    """One number, or the smallest and the largest."""
    there = sorted(set(numbers))
    return f"{there[0]}" if len(there) == 1 else f"{there[0]} to {there[-1]}"


def figure(number: float) -> str:
    """A positive number with three digits or a few more."""
    digits = 0 if number >= 100 else 1 if number >= 10 else 2 if number >= 1 else 3
    return f"{number:,.{digits}f}"


def _tokens(step: Step | None) -> tuple[str, str, str, str, str]:
    if step is None:
        return "", "", "", "", ""
    tokens = f"{step.tokens_in}" if step.tokens_in == step.tokens_out else f"{step.tokens_in}, {step.tokens_out} out"
    scale = f"{step.scale}" if step.kind == "next_scale" else f"{step.scale} ({step.kind})"
    grid = f"{step.grid[0]}×{step.grid[1]}"
    return scale, grid, tokens, kept_text(step), span(layer.past_rows for layer in step.layers)


def _cost(flops: float, moved: float, seconds: float | None) -> tuple[str, ...]:
    return figure(flops / 1e9), figure(moved / 1e6), *(() if seconds is None else (figure(seconds * 1e3),))
