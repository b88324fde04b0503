"""Plans beside each other, on every GPU, and beside what is published of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nextscale.plan.cost import memory, plan_cost
from nextscale.plan.devices import DEVICES, Device
from nextscale.plan.editing import computed_tokens
from nextscale.plan.published import Published, published
from nextscale.plan.tables import Table, figure
from nextscale.plan.types import Plan


def device_table(plans: Sequence[Plan], images: int = 1, precision: str = "fp16") -> Table:
    """Roofline seconds of one or two plans on every GPU, then the published ones; with two, how many times as long."""
    costs = [plan_cost(plan, images, precision) for plan in plans]
    rows = [_row(name, [cost.seconds(device) for cost in costs]) for name, device in DEVICES.items()]
    rows += _published_rows(plans, images, lambda each: each.seconds, "published: ")
    ratio = ("ratio",) if len(plans) == 2 else ()
    return Table(
        title=f"seconds at least, by a GPU's peak rates: {_pictures(images)}, {precision}",
        columns=("GPU", *(plan.name for plan in plans), *ratio),
        numeric=(False, *(True for _ in (*plans, *ratio))),
        rows=tuple(rows),
    )


def too_small(plan: Plan, devices: Sequence[Device], images: int = 1, precision: str = "fp16") -> list[str]:
    """Of devices whose memory is known, the names of those that the plan does not fit into, libraries not counted."""
    needed = memory(plan, images, precision)["total"]
    return [device.name for device in devices if 0 < device.memory * 1e9 < needed]


def comparison_table(plan: Plan, other: Plan, device: Device | None, images: int = 1, precision: str = "fp16") -> Table:
    """Two plans side by side: steps, tokens, work, traffic, memory by cause, the time on a GPU; and their ratios."""
    sides = (plan, other)
    costs, reports = [plan_cost(p, images, precision) for p in sides], [memory(p, images, precision) for p in sides]
    rows = [
        _row("steps", [len(p.steps) for p in sides]),
        _row("tokens of a layer (mean)", [_computed(p) for p in sides]),
        _row("TFLOP", [cost.total_flops / 1e12 for cost in costs]),
        _row("GB moved", [cost.total_bytes / 1e9 for cost in costs]),
    ]
    if device is not None:
        rows.append(_row(f"ms at least on {device.name}", [cost.seconds(device) * 1e3 for cost in costs]))
        rows += _published_rows(sides, images, lambda each: each.seconds and each.seconds * 1e3, "ms published: ")
    causes = [cause for cause in dict.fromkeys([*reports[0], *reports[1]]) if cause != "total"]
    rows += [_row(f"MB of {cause}", [report.get(cause, 0) / 1e6 for report in reports]) for cause in causes]
    rows.append(_row("MB in all", [report["total"] / 1e6 for report in reports]))
    rows += _published_rows(sides, images, lambda each: each.gigabytes and each.gigabytes * 1e3, "MB published: ")
    title = f"{plan.name} beside {other.name}: {_pictures(images)}, {precision}"
    return Table(title, ("", plan.name, other.name, "ratio"), (False, True, True, True), tuple(rows))


def ratios(plan: Plan, other: Plan, devices: Sequence[Device], images: int, precision: str) -> dict[str, Any]:
    """How many times as much the first plan takes: FLOPs, bytes, memory in all, seconds on each device."""
    a, b = (plan_cost(p, images, precision) for p in (plan, other))
    totals = [memory(p, images, precision)["total"] for p in (plan, other)]
    return {
        "flops": a.total_flops / b.total_flops,
        "bytes": a.total_bytes / b.total_bytes,
        "memory": totals[0] / totals[1],
        "seconds": {device.name: a.seconds(device) / b.seconds(device) for device in devices},
    }


def _computed(plan: Plan) -> int:
    """Tokens whose keys and values a layer computes, over all steps and on average over the layers that are there."""
    computed = sum(computed_tokens(step, layer) for step in plan.steps for layer in step.layers)
    return round(computed / sum(model.depth for _, model in plan.models))


def _published_rows(
    plans: Sequence[Plan], images: int, value: Callable[[Published], float | None], label: str
) -> list[tuple[str, ...]]:
    """A row for each source that tells that value of any of the plans."""
    told = [{(each.source, each.gpu): value(each) for each in published(plan, images)} for plan in plans]
    rows = []
    for source, gpu in dict.fromkeys(key for figures in told for key in figures):
        values = [figures.get((source, gpu)) for figures in told]
        if any(values):
            rows.append(_row(f"{label}{source}, {gpu or 'GPU not named'}", values))
    return rows


def _row(what: str, values: Sequence[float | None]) -> tuple[str, ...]:
    """A row of figures, with the ratio of the first to the second where there are two; what is not told is empty."""
    cells = ["" if v is None else figure(v) if v and isinstance(v, float) else f"{v:,.0f}" for v in values]
    if len(values) != 2:
        return (what, *cells)
    a, b = values
    return (what, *cells, f"{a / b:.2f}" if a and b else "")


def _pictures(images: int) -> str:
    return "1 picture" if images == 1 else f"{images} pictures"
