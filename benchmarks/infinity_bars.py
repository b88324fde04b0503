"""What the Infinity benchmark has to show, and its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infinity_sides import EAGER, NAMES, RUNTIME, UPSTREAM

from nextscale.export.verify import TOLERANCES

PLAIN = "infinity-125m-1m"
FASTER, FASTER_THAN_PLAIN, MEMORY, PARITY = 1.2, 5.6, 0.8, TOLERANCES["fp32"]
# Of the original code on two quiet cores, float32, one picture with guidance, transformer alone.
ORIGINAL: dict[str, dict[str, float]] = {
    "infinity-125m-0.25m": {"seconds": 10.6},
    "infinity-125m-0.25m-fastvar": {"seconds": 9.5},
    PLAIN: {"seconds": 75.0, "memory": 3.1e9},
    f"{PLAIN}-fastvar": {"seconds": 15.8, "memory": 1.9e9},
}

Row = dict[str, Any]

SETUP = """# Infinity 125M on a CPU: upstream's eager code, ours, the runtime

Drawn weights, float32, one picture with guidance. The transformer alone: no text encoder, no decoding. The runtime runs
on packed weights (`nextscale build --flavor onnxruntime-cpu`). Sides run by turns in one process, after a run of each
that does not count where there are several; medians, with quartiles. Memory is the highest Pss of a process of its own
that makes one picture, libraries and weights included. Machine, versions and date stand with each recipe."""


def bars(cases: Sequence[Row]) -> list[Row]:
    """Every bar whose figures are there, those of two recipes of one run: recipe, what it says, value, bar, if met."""
    found: list[Row] = []
    by_recipe = {case["recipe"]: case for case in cases}

    def add(case: Row, what: str, value: float, bar: float, met: bool) -> None:
        found.append({"recipe": case["recipe"], "what": what, "value": value, "bar": bar, "met": met})

    for case in cases:
        mine, theirs = (case["sides"][name]["total"]["median"] for name in (RUNTIME, UPSTREAM))
        if case["recipe"] in (PLAIN, f"{PLAIN}-fastvar"):
            add(case, "times as fast as upstream's eager", theirs / mine, FASTER, theirs / mine >= FASTER)
        if case["recipe"] == f"{PLAIN}-fastvar" and by_recipe.get(PLAIN, {}).get("run") == case["run"]:
            value = by_recipe[PLAIN]["sides"][UPSTREAM]["total"]["median"] / mine
            add(case, "times as fast as upstream's plain eager", value, FASTER_THAN_PLAIN, value >= FASTER_THAN_PLAIN)
        if case["memory"] and case["recipe"].startswith(PLAIN):
            value = case["memory"][RUNTIME]["pss"] / case["memory"][UPSTREAM]["pss"]
            add(case, "peak memory over upstream's", value, MEMORY, value <= MEMORY)
        value = case["parity"][RUNTIME]["error"]
        add(case, "error of logits under forced bits", value, PARITY, value <= PARITY)
    return found


def tables(report: Row) -> str:
    """The Markdown page."""
    return "\n\n".join((SETUP, _bars(report["bars"]), _totals(report), *map(_steps, report["cases"]))) + "\n"


def _setup(case: Row) -> str:
    """With what one recipe was measured, and when."""
    machine, settings = case["machine"], case["settings"]
    busy = "unknown" if machine["busy"] is None else f"{machine['busy']:.2f}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {settings['threads']} threads; {busy} cores busy with "
        f"other work meanwhile. A drawn text of {settings['text_tokens']} tokens, of {case['text_room']} that the "
        f"bundle takes. {versions}; {machine['date']}."
    )


def _bars(rows: Sequence[Row]) -> str:
    lines = ["| recipe | bar | value | wanted | |", "|---|---|---|---|---|"]
    for row in rows:
        least = row["what"].startswith("times")
        wanted = f"{'at least' if least else 'at most'} {row['bar']:g}"
        value = f"{row['value']:.2f}" if least or row["bar"] > 0.01 else f"{row['value']:.1e}"
        lines.append(f"| {row['recipe']} | {row['what']} | {value} | {wanted} | {'met' if row['met'] else 'MISSED'} |")
    return "\n".join(lines)


def _totals(report: Row) -> str:
    titles = [f"{name}, s" for name in NAMES]
    titles = ["recipe", "passes", *titles, "upstream / runtime", "roofline, s", f"peak GB: {', '.join(NAMES)}"]
    titles += ["error: runtime, upstream", "original"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for case in report["cases"]:
        sides = case["sides"]
        times = [_quartiles(sides[name]["total"]) for name in NAMES]
        ratio = sides[UPSTREAM]["total"]["median"] / sides[RUNTIME]["total"]["median"]
        memory = ", ".join(f"{case['memory'][name]['pss'] / 1e9:.2f}" for name in NAMES) if case["memory"] else ""
        errors = ", ".join(f"{case['parity'][name]['error']:.1e}" for name in (RUNTIME, UPSTREAM))
        original = ORIGINAL.get(case["recipe"], {})
        said = [f"{original['seconds']} s"] if "seconds" in original else []
        said += [f"{original['memory'] / 1e9:.1f} GB"] if "memory" in original else []
        cells = [case["recipe"], str(len(case["grids"])), *times, f"{ratio:.2f}", f"{case['roofline']['total']:.2f}"]
        lines.append(f"| {' | '.join([*cells, memory, errors, ', '.join(said)])} |")
    return "\n".join(lines)


def _steps(case: Row) -> str:
    """Where the time of a recipe goes; noise apart, of which upstream's is inside its steps."""
    sides, roofline = case["sides"], case["roofline"]
    lines = [f"## {case['recipe']}", "", "| | " + " | ".join(f"{name}, s" for name in NAMES) + " | roofline, s |"]
    lines.append("|---|---|---|---|---|")
    rows: list[tuple[str, list[float], float | None]] = [
        ("begin", [sides[name]["begin"] for name in NAMES], roofline["begin"]),
        *(
            (f"{h} x {w}", [sides[name]["steps"][i] for name in NAMES], roofline["steps"][i])
            for i, (h, w) in enumerate(case["grids"])
        ),
        ("noise", [sides[name]["noise"] for name in NAMES], None),
    ]
    for what, seconds, least in rows:
        cells = [f"{each:.3f}" for each in seconds]
        lines.append(f"| {what} | {' | '.join(cells)} | {'' if least is None else f'{least:.3f}'} |")
    reached = ", ".join(
        f"{p['matrix']} {p['gflops']['torch']:.0f} / {p['gflops']['onnxruntime']:.0f}"
        for p in case["rates"]["products"]
    )
    rows_at = case["rates"]["products"][0]["rows"]
    told = f"GFLOP/s at {rows_at} rows, PyTorch / ONNX Runtime: {reached}; copying {case['rates']['gbytes']:.1f} GB/s."
    moves = case["parity"][EAGER]["moves"]
    if moves is not None:
        told += f" Rounding alone moves the eager model's own logits by {moves:.1e}: tokens at the cut tie."
    return "\n".join([*lines, "", told, "", _setup(case)])


def _quartiles(times: Row) -> str:
    if times["runs"] == 1:
        return f"{times['median']:.2f}"
    return f"{times['median']:.2f} ({times['low']:.2f} to {times['high']:.2f})"
