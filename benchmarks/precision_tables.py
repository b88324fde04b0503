"""The tables of docs/precision.md, from the JSON that the two benchmarks of precision write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

PRECISIONS = ("fp16", "bf16")


def tables(report: dict[str, Any]) -> str:
    """Three tables in Markdown: what is lost as exported, step by step, and with each island in half."""
    settings = report["settings"]
    note = (
        f"{settings['pictures']} pictures a row are drawn freely and judged, {settings['forced']} are compared "
        f"under forced tokens. How: {settings['how']}."
    )
    return "\n\n".join((note, _losses(report["exported"]), _steps(report["exported"]), _islands(report))) + "\n"


def graphs_table(report: dict[str, Any]) -> str:
    """One table in Markdown: what ``bench_precision_graphs.py`` found."""
    note = f"{report['settings']['pictures']} pictures a row under forced tokens, against float32 eager PyTorch."
    rows = (
        (f"{row['recipe']}, {row['precision']}", row["by"], *drift_cells(row), _pixels(row)) for row in report["graphs"]
    )
    return f"{note}\n\n{markdown('graphs of|executed by|logit error: RMS|largest|equal tokens|pixels', rows)}\n"


def _losses(rows: Sequence[dict[str, Any]]) -> str:
    head = "recipe, precision|logit error: RMS|largest|equal tokens, forced|equal tokens, free|pixels|accuracy|"
    head += "loss to fp32, 95 % bound"
    return markdown(
        head,
        (
            (
                f"{row['recipe']}, {row['precision']}",
                *drift_cells(row),
                _percent(row["equal_free"]),
                _pixels(row),
                f"{_percent(row['accuracy'])} (fp32: {_percent(row['accuracy_fp32'])})",
                f"{100 * row['loss']:.2f}, under {100 * row['loss_upper_bound']:.2f} points",
            )
            for row in rows
        ),
    )


def _steps(rows: Sequence[dict[str, Any]]) -> str:
    """RMS and largest error of every step."""
    head = "step|" + "|".join(f"{row['recipe']}, {row['precision']}" for row in rows)
    columns = [[f"{_small(s['rms'])}, {_small(s['largest'])}" for s in row["steps"]] for row in rows]
    names = [str(order) for order in range(len(columns[0]))]
    return markdown(head, zip(names, *columns, strict=True))


def _islands(report: dict[str, Any]) -> str:
    """A row for each island and, above those of its recipe, one for the layout as it is exported."""
    head = "also in half|" + "|".join(f"{p}: RMS|largest|equal tokens|pixels" for p in PRECISIONS)
    found: dict[str, list[str]] = {}
    rows = [("nothing, as exported", row) for row in report["exported"]] + [
        (row["island"], row) for row in report["islands"]
    ]
    for what, row in sorted(rows, key=lambda pair: pair[1]["recipe"] != "full"):
        cells = found.setdefault(f"{row['recipe']}: {what}", [])
        cells += [*drift_cells(row), _pixels(row)]
    return markdown(head, ((what, *cells) for what, cells in found.items()))


def drift_cells(row: dict[str, Any]) -> tuple[str, str, str]:
    """RMS and largest error of logits, and the share of equal tokens."""
    return _small(row["rms"]), _small(row["largest"]), _percent(row["equal_forced"])


def _pixels(row: dict[str, Any]) -> str:
    return "not finite" if row["pixels"] is None else f"{row['pixels']:.2f}"


def _small(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def markdown(head: str, rows: Iterable[tuple[str, ...]]) -> str:
    """A table; columns of ``head`` are parted by ``|``."""
    lines = (f"| {' | '.join(cells)} |" for cells in rows)
    columns = head.split("|")
    return "\n".join((f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *lines))
