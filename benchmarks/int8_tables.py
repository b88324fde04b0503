"""The tables of what int8 costs and gains, from the JSON of ``bench_int8.py``."""

from __future__ import annotations

from typing import Any

from precision_tables import drift_cells, markdown


def tables(report: dict[str, Any]) -> str:
    """Markdown: pictures judged, drift of graphs and of kinds of layers, the steps of a pair; those that are there."""
    parts = ["# int8 on a CPU"]
    for name, rows in (("pictures", _judged), ("graphs", _graphs), ("layers", _layers), ("pair", _pair)):
        if name in report:
            parts += [_how(name, report[name]), rows(report[name]["found"])]
    return "\n\n".join(parts) + "\n"


def _how(name: str, part: dict[str, Any]) -> str:
    machine, settings = part["machine"], part["settings"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    counts = {
        "pictures": "{pictures} pictures of each bundle, in batches of {batch}, drawn by turns and judged.",
        "graphs": "{forced} pictures under forced tokens, against float32 eager PyTorch.",
        "layers": "{forced} pictures under forced tokens: eager PyTorch with those layers alone in integers.",
        "pair": "Medians of {runs} runs by turns, on packed targets.",
    }
    return (
        f"{counts[name].format(**settings)} {machine['processor']}, {machine['cores']} cores, {settings['threads']} "
        f"threads; {machine['busy']} cores busy with other work meanwhile. {versions}; {machine['date']}."
    )


def _judged(rows: list[dict[str, Any]]) -> str:
    """Two rows for each recipe: float32, and int8 with what it loses on the same seeds."""
    cells = []
    for row in rows:
        loss = f"{100 * row['loss']:.2f}, under {100 * row['loss_upper_bound']:.2f} points"
        for name, lost, of in (("float32", "", "_fp32"), ("int8", loss, "")):
            accuracy, weights, seconds = (row[f"{key}{of}"] for key in ("accuracy", "weights", "seconds"))
            sizes = (f"{100 * accuracy:.2f} %", lost, f"{weights / 1e6:.1f}", f"{1e3 * seconds['median']:.0f}")
            cells.append((f"{row['recipe']}, {name}", *sizes))
    return markdown("bundle|accuracy|loss to float32, 95 % bound|weights, MB|a batch, ms", cells)


def _graphs(rows: list[dict[str, Any]]) -> str:
    head = "graphs of|logit error: RMS|largest|equal tokens|pixels"
    return markdown(head, ((row["recipe"], *drift_cells(row), f"{row['pixels']:.2f}") for row in rows))


def _layers(rows: list[dict[str, Any]]) -> str:
    head = "layers in integers|logit error: RMS|largest|equal tokens"
    return markdown(head, ((row["layers"], *drift_cells(row)) for row in rows))


def _pair(pair: dict[str, Any]) -> str:
    """Medians by graph, how many times faster int8 is, and how near both are to their rooflines."""
    exact, whole = pair["graphs"]["fp32"], pair["graphs"]["int8"]
    sizes = " and ".join(f"{size / 1e6:,.0f}" for size in pair["weights"])
    rows = (
        (graph, *(f"{1e3 * side[graph]['median']:.1f}" for side in (exact, whole)), _faster(exact, whole, graph))
        for graph in exact
    )
    table = markdown("graph|float32, ms|int8, ms|times faster", rows)
    products = pair["rates"]["products"]
    reached = [(p["matrix"], max(p["gflops"].values()), p["int8_gflops"]) for p in products]
    rates = ", ".join(f"{matrix} {single:.0f} and {whole:.0f}" for matrix, single, whole in reached)
    shares = [
        f"{100 * pair['roofline'][name]['total'] / pair['graphs'][name]['without decode']['median']:.0f} %"
        for name in ("fp32", "int8")
    ]
    limits = (
        f"Of the roofline, without decode: {' and '.join(shares)}. GFLOP/s that products reach in float32 (the faster "
        f"library) and in integers, {products[0]['rows']} rows: {rates}."
    )
    return f"{pair['recipe']}, weights of {sizes} MB:\n\n{table}\n\n{limits}"


def _faster(exact: dict[str, Any], whole: dict[str, Any], graph: str) -> str:
    return f"{exact[graph]['median'] / whole[graph]['median']:.2f}"
