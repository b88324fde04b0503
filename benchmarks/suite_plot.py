"""A report of the suite as bars: seconds of a picture by contender, split into transformer and decoder."""

from __future__ import annotations

from typing import Any

from nextscale.compare.charts import Bar, Series, bar_chart

TRANSFORMER, DECODER = "#2f6f8f", "#c9a24b"


def plot(report: dict[str, Any]) -> str:
    """The SVG: a dark and a pale bar for each contender, quartiles as whiskers."""
    seen = report["seen"]
    series = (
        Series("transformer", TRANSFORMER, tuple(_bar(name, one["transformer"]) for name, one in seen.items())),
        Series("decoder", DECODER, tuple(_bar(name, one["graphs"]["decode"]) for name, one in seen.items())),
    )
    return bar_chart([str(i) for i in range(1, len(seen) + 1)], series, "s")


def _bar(name: str, found: dict[str, Any]) -> Bar:
    return Bar(found["median"], f"{name}: {found['median']:.3g} s", found["low"], found["high"])
