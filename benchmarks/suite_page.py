"""The page of the suite's results: README.md is about.md, and the tables of every results/MACHINE/*.json behind it.

python benchmarks/suite_page.py          # after results or about.md were changed by hand
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from suite_accuracy import accuracies
from suite_bars import accuracy, bars, faster, median
from suite_plot import plot
from suite_subjects import FULL, OURS, SIDES, SUBJECTS, UPSTREAM, Contender

HERE = Path(__file__).resolve().parent
ABOUT, PAGE = "about.md", "README.md"

Row = dict[str, Any]


def write_page(results: Path) -> None:
    """README.md and a plot beside each file of results; the project's page stands beside its folder of results."""
    for path in reports(results):
        path.with_suffix(".svg").write_text(plot(read(path)) + "\n", encoding="utf-8")
    (place_of(results) / PAGE).write_text(page(results), encoding="utf-8")


def place_of(results: Path) -> Path:
    """Where the page goes: into a folder of the caller's, and no place above it."""
    return HERE if results.resolve() == HERE / "results" else results


def page(results: Path) -> str:
    """The whole page."""
    about = (HERE / ABOUT).read_text(encoding="utf-8").rstrip()
    parts = [f"<!-- Made by suite_page.py: change {ABOUT}, or measure again. -->", about]
    machines, known = sorted({path.parent for path in reports(results)}), accuracies(results)
    parts += ["# Results of the suite", sides_table(), by_machine(results)] if machines else []
    for machine in machines:
        parts.append(f"## {machine.name}")
        for path in reports(results):
            if path.parent == machine:
                parts += section(read(path), path.with_suffix(".svg").relative_to(place_of(results)).as_posix(), known)
    return "\n\n".join(parts) + "\n"


def by_machine(results: Path) -> str:
    """How many times as fast who is on which machine, before the tables of each; in bold where that is not enough."""
    found: dict[str, Row] = {}
    for path in reports(results):
        report = read(path)
        for row in faster(report):
            one = found.setdefault(f"{report['title']}: {row['what']}", {"at least": f"{row['at_least']:g}"})
            one[path.parent.name] = f"{row['value']:.2f}" if row["met"] else f"**{row['value']:.2f}**"
    machines = sorted({name for one in found.values() for name in one} - {"at least"})
    columns = ["at least", *machines]
    return table(["", *columns], [[what, *(one.get(name, "") for name in columns)] for what, one in found.items()])


def reports(results: Path) -> list[Path]:
    """The files of all machines, a machine's in the suite's order; a quick one only where there is no full one."""
    found = []
    for machine in sorted(path for path in results.iterdir() if path.is_dir()):
        for subject in SUBJECTS:
            both = (machine / f"{subject.name}.json", machine / f"{subject.name}-quick.json")
            found += [path for path in both if path.exists()][:1]
    return found


def read(path: Path) -> Row:
    """One report."""
    found: Row = json.loads(path.read_text(encoding="utf-8"))
    return found


def section(report: Row, image: str, known: dict[str, Row]) -> Iterator[str]:
    """One subject: setup, bars, plot, totals, steps, batches, what pruning costs, the machine's rates."""
    yield f"### {report['title']}{' (quick)' if report['quick'] else ''}"
    yield setup(report)
    yield table(["bar", "value", "wanted", ""], [bar_cells(row) for row in (*bars(report), *accuracy(report, known))])
    yield f"![Seconds of a picture by contender, by their numbers below: transformer dark, decoder pale]({image})"
    yield table(*totals(report))
    yield table(*steps(report))
    if report["batches"]:
        runs = {one["runs"] for by_size in report["batches"].values() for one in by_size.values()}
        yield f"Pictures a second, by pictures at once (of more than one, medians of {' or '.join(map(str, runs))}):"
        yield table(*batches(report))
    if rows := [*costs(report, known)]:
        yield (
            "What the variants change: the code sum that each makes of the full model's own picture (relative root "
            "mean square, under the full model's tokens), the share of equal tokens at the last two steps, and the "
            "demo model's accuracy at the same shares, in points lost to full."
        )
        yield table(["variant", "code sum", "equal tokens", "accuracy"], rows)
    yield machine_rates(report)


def setup(report: Row) -> str:
    """Machine, versions, rounds, and what is not there."""
    machine, settings = report["machine"], report["settings"]
    busy = "an unknown number of" if machine["busy"] is None else f"{machine['busy']:.2f}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    ours = report["seen"].get(f"{OURS}, {FULL}", {}).get("latency", {}).get("pictures", settings["runs"])
    said = (
        f"{machine['processor']}, {machine['cores']} cores, {settings['threads']} threads, {busy} cores busy with "
        f"other work meanwhile; {versions}; {machine['date']}. {settings['runs']} rounds by turns after one that does "
        f"not count, {ours} pictures of ours; one picture with guidance, float32 but where a variant says otherwise."
    )
    return " ".join([said, *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in report["left_out"])])


def bar_cells(row: Row) -> list[str]:
    """What it says, value, what is wanted, whether it is met."""
    at = "at_least" if "at_least" in row else "at_most"
    return [
        row["what"],
        f"{row['value']:.3g}",
        f"{at.replace('_', ' ')} {row[at]:g}",
        "met" if row["met"] else "MISSED",
    ]


def shown(row: Row) -> str:
    """The same as a line for a terminal."""
    what, value, wanted, met = bar_cells(row)
    return f"{met:6} {value:>7} ({wanted}) {what}"


def totals(report: Row) -> tuple[list[str], list[list[str]]]:
    """One line for each contender; speed and the share of the roofline are those of the transformer part."""
    seen, base = report["seen"], Contender(UPSTREAM, FULL)
    titles = [
        "contender",
        "picture, s",
        "transformer, s",
        "decoder, s",
        "p50, p99, s",
        "times upstream's",
        "of the roofline",
    ]
    rows = []
    for i, name in enumerate(seen, 1):
        one, latency = seen[name], seen[name]["latency"]
        alone = report["processes"].get(name)
        apart = [f"{alone['open']:.2f}", f"{alone['first']:.2f}", f"{alone['pss'] / 1e9:.2f}"] if alone else [""] * 3
        line = report["roofline"].get(report["contenders"][i - 1]["variant"])
        ratio = median(seen, base, "transformer") / one["transformer"]["median"] if str(base) in seen else None
        rows.append(
            [
                f"{i}: {name}",
                spread(one["picture"]),
                spread(one["transformer"]),
                f"{one['graphs']['decode']['median']:.3g}",
                f"{latency['p50']:.3g}, {latency['p99']:.3g} ({latency['pictures']})",
                "" if ratio is None else f"{ratio:.2f}",
                "" if line is None else f"{100 * line['total'] / one['transformer']['median']:.0f} %",
                *apart,
            ]
        )
    return [*titles, "opens, s", "first picture, s", "peak GB"], rows


def spread(found: Row) -> str:
    """Median and quartiles."""
    return f"{found['median']:.3g} ({found['low']:.3g} to {found['high']:.3g})"


def steps(report: Row) -> tuple[list[str], list[list[str]]]:
    """Milliseconds of every graph, by contender in full, and ours of the other variants; the roofline beside ours."""
    seen = report["seen"]
    names = [n for n in seen if n.endswith(f", {FULL}") or n.startswith(f"{OURS}, ")]
    lines: Row = report["roofline"]
    rows = []
    for i, name in enumerate(("begin", *(f"step_{i:02d}" for i in range(len(report["grids"]))), "decode")):
        grid = "" if name in ("begin", "decode") else f" ({report['grids'][i - 1][0]} x {report['grids'][i - 1][1]})"
        cells = [f"{1e3 * seen[n]['graphs'][name]['median']:.1f}" for n in names]
        least = [line["steps"][i - 1] if grid else line[name] for line in lines.values()]
        rows.append([f"{name.replace('_', ' ')}{grid}", *cells, *(f"{1e3 * each:.1f}" for each in least)])
    own = [f"{1e3 * seen[n]['own']['median']:.2f}" if "own" in seen[n] else "" for n in names]
    noise = [f"{1e3 * seen[n]['own']['noise']:.2f}" if "own" in seen[n] else "" for n in names]
    blank = [""] * len(lines)
    rows += [["the runtime's own", *own, *blank], ["noise, within the steps", *noise, *blank]]
    return ["ms", *names, *(f"roofline, {variant}" for variant in lines)], rows


def batches(report: Row) -> tuple[list[str], list[list[str]]]:
    """Pictures a second by contender and batch."""
    by_size: Row = {"1": {name: one["picture"] for name, one in report["seen"].items()}, **report["batches"]}
    names = list(next(iter(report["batches"].values())))
    rows = [[n, *(f"{int(size) / by_size[size][n]['median']:.3g}" for size in by_size)] for n in names]
    return ["contender", *by_size], rows


def costs(report: Row, known: dict[str, Row]) -> Iterator[list[str]]:
    """What each variant changes."""
    for variant in report["variants"]:
        error = report["errors"].get(variant["name"])
        if error is None:
            continue
        row = known.get(variant["accuracy"] or variant["name"])
        lost = "not measured"
        if row is not None:
            bound = f"under {100 * row['accuracy_loss_upper_bound']:.2f} by a 95 % bound"
            lost = f"{100 * row['accuracy_loss']:.2f}, {bound}, {row['pictures']} pictures"
        equal = ", ".join(f"{share:.2f}" for share in error["equal"][-2:])
        yield [variant["name"], f"{error['code_sum']:.3f}", equal, lost]


def machine_rates(report: Row) -> str:
    """What the roofline stands on, how far contenders' logits are apart, what exports took."""
    rates, made = report["rates"], report["made"]
    products = ", ".join(
        f"{p['matrix']} ({p['in']} to {p['out']}) {p['gflops']['torch']:.0f} and {p['gflops']['onnxruntime']:.0f}"
        for p in rates["products"]
    )
    said = f"GFLOP/s at {rates['products'][0]['rows']} rows by PyTorch and ONNX Runtime: {products}"
    if "int8_gflops" in rates["products"][0]:
        whole = ", ".join(f"{p['int8_gflops']:.0f}" for p in rates["products"])
        said += f"; of integers, by ONNX Runtime: {whole}"
    said += f"; copying {rates['gbytes']:.1f} GB/s."
    if made:
        took = (
            f"{name} {one['seconds']:.0f} s{', traces shared with the one before' if one['traces_shared'] else ''}"
            for name, one in made.items()
        )
        said += f" Exports and packing (checks: {next(iter(made.values()))['check']}): {'; '.join(took)}."
    if report["parity"]:
        apart = ", ".join(f"{name} {error:.1e}" for name, error in report["parity"].items())
        said += (
            " Logits under the same tokens, from those of our eager model (of ours, where a run leaves that out), in "
            f"units of max(1, std): {apart}."
        )
    return said


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def sides_table() -> str:
    """Who the contenders are."""
    return table(["side", "what it is"], [[name, what] for name, what in SIDES.items()])


if __name__ == "__main__":
    write_page(HERE / "results")
