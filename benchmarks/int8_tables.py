"""The tables of what int8 costs and gains, from the JSON of ``bench_int8.py``."""

from __future__ import annotations

from typing import Any

from precision_tables import drift_cells, markdown


def tables(report: dict[str, Any]) -> str:
    """Markdown: pictures judged, drift of graphs and of kinds of layers, the steps of pairs where they were timed."""
    machine, settings = report["machine"], report["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    note = (
        f"{machine['processor']}, {machine['cores']} cores, {settings['threads']} threads; {machine['busy']} cores "
        f"busy with other work meanwhile. {versions}; {machine['date']}. {settings['pictures']} pictures a row are "
        f"drawn and judged, in batches of {settings['batch']}; {settings['forced']} are compared under float32's tokens."
    )
    parts = ["# int8 on a CPU", note, _judged(report["judged"]), _drift(report)]
    return "\n\n".join([*parts, *map(_pair, report.get("pairs", ()))]) + "\n"


def _judged(rows: list[dict[str, Any]]) -> str:
    head = "recipe|accuracy|of float32|loss, 95 % bound|weights, MB|of float32|a batch, ms|of float32"
    return markdown(
        head,
        (
            (
                row["recipe"],
                f"{100 * row['accuracy']:.2f} %",
                f"{100 * row['accuracy_fp32']:.2f} %",
                f"{100 * row['loss']:.2f}, under {100 * row['loss_upper_bound']:.2f} points",
                *(f"{row[key] / 1e6:.1f}" for key in ("weights", "weights_fp32")),
                *(f"{1e3 * row[key]['median']:.0f}" for key in ("seconds", "seconds_fp32")),
            )
            for row in rows
        ),
    )


def _drift(report: dict[str, Any]) -> str:
    """Graphs first, then the layers in eager PyTorch."""
    rows = [(f"graphs of {row['recipe']}", row) for row in report["graphs"]]
    rows += [(f"eager, {row['layers']}", row) for row in report["layers"]]
    head = "in integers|logit error: RMS|largest|equal tokens|pixels"
    return markdown(head, ((name, *drift_cells(row), f"{row['pixels']:.2f}") for name, row in rows))


def _pair(pair: dict[str, Any]) -> str:
    """Medians by graph, and how many times faster int8 is."""
    exact, whole = pair["graphs"]["fp32"], pair["graphs"]["int8"]
    where = "packed targets" if pair["packed"] else "the bundles' own graphs, unpacked"
    sizes = " and ".join(f"{size / 1e6:,.0f}" for size in pair["weights"])
    note = f"{pair['recipe']}, {where}: medians of {pair['runs']} runs by turns; weights of {sizes} MB."
    rows = (
        (graph, *(f"{1e3 * side[graph]['median']:.1f}" for side in (exact, whole)), _faster(exact, whole, graph))
        for graph in exact
    )
    return f"{note}\n\n{markdown('graph|float32, ms|int8, ms|times faster', rows)}"


def _faster(exact: dict[str, Any], whole: dict[str, Any], graph: str) -> str:
    return f"{exact[graph]['median'] / whole[graph]['median']:.2f}"
