"""What packed weights gain on a CPU, and what they hold: one bundle in three ways, by turns, in one process.

    python benchmarks/bench_packed.py                 # draws and exports a VAR-d16 first; 10 minutes, 16 GB of memory
    python benchmarks/bench_packed.py --bundle engines/NAME

``unpacked`` runs the bundle's own graphs over its one weights file, ``packed`` the target of ``nextscale build --flavor
onnxruntime-cpu``, ``own copies`` a packed copy in every session, which is what a session does by itself. Every graph's
time in the three, a picture's, opening, and the peak memory (Pss) of processes that draw one picture: one, and four at
once on one target. Bars: no graph slower than 1.10 times the one with a copy of its own, peaks of at most 1.4 times the
bundle's weights beside the decoder's workspace, opened within 3 s, lengths of files checked or their hashes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from watching import watched

from nextscale.compare.latency import times
from nextscale.compare.machine import OtherWork, this_machine
from nextscale.compare.plain import plain
from nextscale.plan.cost import memory
from nextscale.runtime import Pipeline
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.backends.packed.build import build_packed
from nextscale.runtime.bundle import Bundle, open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE

RESULTS = Path(__file__).parent / "results"
WAYS: dict[str, dict[str, Any]] = {
    "unpacked": {"packed": False},
    "packed": {"packed": True},
    "own copies": {"prepack": True},
}
SLOWER, PEAK, OPENED, PROCESSES = 1.10, 1.4, 3.0, 4


def opened(bundle: Path, way: str, threads: int, verify: str = "size") -> Pipeline:
    """A pipeline for one picture at a time."""
    backend = OnnxRuntime(threads=threads, verify=verify, **WAYS[way])
    return Pipeline.open(bundle, backend, batch_sizes=(1,), verify=verify)


def drawn(folder: Path) -> Path:
    """A VAR-d16 of drawn weights, exported now."""
    from nextscale.export.bundle import Options, export_bundle
    from nextscale.export.checkpoint import load_checkpoint
    from nextscale.export.draw import draw_checkpoint
    from nextscale.plan.recipes import plan_for, recipe
    from nextscale.runtime.manifest import Recipe

    chosen = recipe("var-d16")
    files = draw_checkpoint(chosen.model, chosen.tokenizer, chosen.schedule, folder / "drawn")
    options = Options(plan_for(chosen), Recipe(chosen.name, chosen.version), check="signatures")
    return export_bundle(load_checkpoint(*files), options, folder / chosen.name, lambda *told: None)


def graph_times(bundle: Path, runs: int, threads: int) -> dict[str, dict[str, Any]]:
    """Seconds of every graph, and of a picture, in every way; each turn begins with another."""
    pipelines = {way: opened(bundle, way, threads) for way in WAYS}
    seen: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    for turn in range(runs + 1):  # the first does not count
        for i in range(len(WAYS)):
            way = [*WAYS][(turn + i) % len(WAYS)]
            result = pipelines[way].generate([0], seed=turn)
            for graph, seconds in {**result.step_seconds, "picture": result.seconds}.items():
                seen[way].setdefault(graph, []).extend([seconds] if turn else [])
        print(f"run {turn} of {runs}", flush=True)
    return {way: {graph: asdict(times(each)) for graph, each in graphs.items()} for way, graphs in seen.items()}


def open_times(bundle: Path, threads: int, runs: int = 5) -> dict[str, float]:
    """Median seconds of opening, the files in the page cache."""
    found = {}
    for way, verify in (("unpacked", "size"), ("packed", "size"), ("packed", "full")):
        seconds = []
        for _ in range(runs + 1):
            start = time.perf_counter()
            opened(bundle, way, threads, verify).close()
            seconds.append(time.perf_counter() - start)
        found[f"{way}, {verify}"] = statistics.median(seconds[1:])
    return found


def peaks(bundle: Path, threads: int) -> dict[str, int]:
    """The highest Pss of processes that open the bundle and draw one picture: one in every way, and four at once."""
    child = [sys.executable, __file__, "--bundle", str(bundle), "--threads", str(threads), "--child"]
    found = {way: watched([*child, way]).pss for way in WAYS}
    found[f"packed, {PROCESSES} processes"] = watched([*child, f"{PROCESSES}"]).pss
    return found


def run_child(bundle: Path, what: str, threads: int) -> None:
    """One picture in a way; or, of a number, so many processes that draw one each at the same time."""
    if what in WAYS:
        with opened(bundle, what, threads) as pipeline:
            pipeline.generate([0], seed=0)
            time.sleep(1.0)  # seen at its peak by those who look
        return
    command = [sys.executable, __file__, "--bundle", str(bundle), "--threads", str(threads), "--child", "packed"]
    running = [subprocess.Popen(command) for _ in range(int(what))]
    if any(process.wait() for process in running):
        raise SystemExit(1)


def bars(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the figures, and whether they hold."""
    graphs, packed = report["graphs"], report["packed"]
    slower = {
        graph: graphs["packed"][graph]["median"] / graphs["own copies"][graph]["median"] for graph in graphs["packed"]
    }
    worst = max(slower, key=lambda graph: slower[graph])
    allowed = PEAK * report["weights"] + report["workspace"]
    rows = [
        (f"slowest graph against its own copy ({worst})", slower[worst], SLOWER),
        ("peak Pss over what is allowed", report["peaks"]["packed"] / allowed, 1.0),
        (
            f"peak Pss of {PROCESSES} processes over what is allowed (workspaces counted {PROCESSES} times)",
            report["peaks"][f"packed, {PROCESSES} processes"] / (allowed + (PROCESSES - 1) * report["workspace"]),
            1.0,
        ),
        ("seconds to open, lengths checked", report["opens"]["packed, size"], OPENED),
        ("seconds to open, every file that is read hashed", report["opens"]["packed, full"], OPENED),
        ("size on disk over the weights", packed["bytes"] / report["weights"], 2.2),
    ]
    return [{"bar": bar, "value": value, "at_most": most, "met": value <= most} for bar, value, most in rows]


def tables(report: dict[str, Any]) -> str:
    """The report for people."""
    machine, graphs = report["machine"], report["graphs"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    setup = (
        f"{machine['processor']}, {machine['cores']} cores, {report['threads']} threads; {machine['busy']} cores busy "
        f"with other work meanwhile. {versions}; {machine['date']}.\n\n"
        f"Packing took {report['packed']['seconds']:.0f} s. Medians of {report['runs']} runs by turns, quartiles in "
        "the JSON; memory is the highest Pss of processes that draw one picture."
    )
    lines = [
        f"# Packed weights on a CPU: {report['bundle']}",
        "",
        setup,
        "",
        "| bar | value | at most | |",
        "|---|---|---|---|",
        *(
            f"| {row['bar']} | {row['value']:.2f} | {row['at_most']:g} | {'met' if row['met'] else 'MISSED'} |"
            for row in report["bars"]
        ),
        "",
        f"| graph | {', ms | '.join(WAYS)}, ms | unpacked / packed | packed / own copies |",
        "|---|" + "---|" * (len(WAYS) + 2),
    ]
    for graph in graphs["packed"]:
        unpacked, packed, own = (graphs[way][graph]["median"] for way in WAYS)
        cells = (f"{1e3 * seconds:.1f}" for seconds in (unpacked, packed, own))
        lines.append(f"| {graph} | {' | '.join(cells)} | {unpacked / packed:.2f} | {packed / own:.2f} |")
    lines += ["", "| memory | GB |", "|---|---|"]
    lines += [f"| {way} | {size / 1e9:.2f} |" for way, size in report["peaks"].items()]
    lines += ["", "| opening (checks) | s |", "|---|---|"]
    lines += [f"| {way} | {seconds:.2f} |" for way, seconds in report["opens"].items()]
    return "\n".join(lines) + "\n"


def bench(bundle: Path, runs: int, threads: int, memory_too: bool = True) -> dict[str, Any]:
    """Everything of one bundle."""
    other_work, checked = OtherWork(), open_bundle(bundle, verify="size")
    place = bundle.with_name(f"{bundle.name}.targets")
    made = build_packed(checked, place, lambda *told: None, force=True, say=print)
    report = {
        "bundle": checked.manifest.name,
        "weights": checked.manifest.files[WEIGHTS_FILE].size,
        "workspace": workspace(checked),
        "runs": runs,
        "threads": threads,
        "packed": {"seconds": made.seconds, "bytes": made.packed.size},
        "opens": open_times(bundle, threads),
        "graphs": graph_times(bundle, runs, threads),
        "peaks": peaks(bundle, threads) if memory_too else {},
    }
    report["machine"] = asdict(this_machine(other_work))
    report["bars"] = bars(report) if memory_too else []
    found: dict[str, Any] = plain(report)
    return found


def workspace(bundle: Bundle) -> int:
    """What the decoder needs beside its input and output, by the plan."""
    return memory(bundle.manifest.plan, 1, bundle.manifest.precision)["scratch (estimate)"]


def main() -> None:
    """Measures, prints the tables, writes packed.json and packed.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle of a class-conditional model; default: a drawn VAR-d16")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(options.bundle, options.child, options.threads)
        return
    with TemporaryDirectory(prefix="bench-packed-") as folder:
        report = bench(options.bundle or drawn(Path(folder)), options.runs, options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "packed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "packed.md").write_text(tables(report), encoding="utf-8")
    print(tables(report))


if __name__ == "__main__":
    main()
