"""The report's page, from a template."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from nextscale.compare.charts import Bar, Series, bar_chart
from nextscale.compare.collect import Measured
from nextscale.compare.judge import Verdict
from nextscale.compare.latency import times
from nextscale.compare.sides import same_numbers
from nextscale.compare.summary import side_summaries, step_summaries
from nextscale.plan.draw import draw_schedule
from nextscale.plan.tables import figure
from nextscale.plan.types import Plan

SHOWN = 16  # pictures on the page; all are in the folder


def page(measured: Measured, verdicts: Sequence[Verdict], picture: Callable[[str, int], str]) -> str:
    """The HTML; ``picture(side, number)`` is where a picture's pixels are, as a URL."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nextscale.compare", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ms": _milliseconds, "figure": figure}
    colours = side_colours(measured)
    return environment.get_template("report.html.j2").render(
        measured=measured,
        verdicts=verdicts,
        on_gpu=measured.columns.device == "cuda",
        held=all(verdict.held for verdict in verdicts),
        sides=side_summaries(measured),
        colours=colours,
        latency=Markup(latency_chart(measured, colours)),
        parities=[(v, step_summaries(measured, v.bundle), Markup(error_chart(measured, v, colours))) for v in verdicts],
        plans=[(names, Markup(draw_schedule(plan))) for names, plan in plans(measured)],
        picture=picture,
        shown=min(SHOWN, measured.options.pictures),
    )


def latency_chart(measured: Measured, colours: dict[str, str]) -> str:
    """Median time of every graph on every side, quartiles as whiskers."""
    graphs = list(measured.full.seconds)
    series = []
    for name, record in measured.records.items():
        bars: list[Bar | None] = []
        for graph in graphs:
            found = times(record.seconds[graph]) if graph in record.seconds else None
            hint = "" if found is None else f"{name}, {graph}: {_milliseconds(found.median)} ms"
            bars.append(None if found is None else Bar(found.median * 1e3, hint, found.low * 1e3, found.high * 1e3))
        series.append(Series(name, colours[name], tuple(bars)))
    return bar_chart([graph.replace("step_", "step ") for graph in graphs], series, "ms")


def error_chart(measured: Measured, verdict: Verdict, colours: dict[str, str]) -> str:
    """The worst error of every step and of the pixels, beside what is allowed."""
    bundle = verdict.bundle
    steps = {s.graph: s.error for s in step_summaries(measured, bundle)}
    errors = steps | {"decode": max(p.pixels for p in measured.parities[bundle])}
    bars = tuple(Bar(error, f"{graph}: {error:.2g}") for graph, error in errors.items())
    return bar_chart(
        [graph.replace("step_", "step ") for graph in errors],
        [Series(bundle, colours[bundle], bars)],
        "error",
        logarithmic=True,
        limit=verdict.tolerance,
    )


def plans(measured: Measured) -> list[tuple[str, Plan]]:
    """Every different plan, with the names of the sides that run it."""
    found: list[tuple[list[str], Plan]] = []
    for name, record in measured.records.items():
        for names, plan in found:
            if same_numbers(plan, record.spec.plan):
                names.append(name)
                break
        else:
            found.append(([name], record.spec.plan))
    return [(", ".join(names), plan) for names, plan in found]


def side_colours(measured: Measured) -> dict[str, str]:
    """One hue for each plan; PyTorch's sides pale, bundles strong, columns of a kind by shade."""
    hues, colours = [0.58, 0.08, 0.38, 0.83, 0.0, 0.5], {}
    groups = [names.split(", ") for names, _ in plans(measured)]
    for name, record in measured.records.items():
        hue = hues[next(i for i, names in enumerate(groups) if name in names) % len(hues)]
        lightness, saturation = (0.76, 0.5) if record.spec.bundle is None else (0.45, 0.65)
        backends = measured.columns.backends
        kind = [c for c in measured.columns.names if (c in backends) == (record.spec.bundle is not None)]
        lightness -= 0.12 * kind.index(record.spec.column)
        red, green, blue = (round(255 * c) for c in colorsys.hls_to_rgb(hue, lightness, saturation))
        colours[name] = f"#{red:02x}{green:02x}{blue:02x}"
    return colours


def _milliseconds(seconds: Any) -> str:
    return figure(float(seconds) * 1e3)
