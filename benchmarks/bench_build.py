"""What engines cost: build time per engine, their sizes, and the sum on disk, for models at their published sizes.

    python benchmarks/bench_build.py [--recipe var-d16 ...] [--precision fp16 ...] [--target sm86] [--batch 1]
    python benchmarks/bench_build.py --recipe infinity-2b-1m infinity-2b-1m-fastvar --precision bf16 \\
        --out benchmarks/results/infinity_build.json

Builds with `nextscale build` in a process of its own, without a GPU, engines of TensorRT-RTX with weights as inputs.
Bar: all engines of VAR-d30 with FastVAR for one target together at most 160 MB (the weights beside them, once).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hollow import write_hollow

from nextscale.compare.machine import this_machine
from nextscale.export.graphs import Traced
from nextscale.plan.recipes import recipe
from nextscale.runtime.backends.tensorrt.library import load

RESULTS = Path(__file__).parent / "results"
BAR = {"var-d30-fastvar": 160_000_000}


def measure(folder: Path, name: str, precision: str, target: str, batch: str, traced: Traced) -> dict[str, Any]:
    """One recipe in one precision: engines of one target."""
    bundle = write_hollow(folder / f"{name}-{precision}", recipe(name), precision, traced)
    command = [sys.executable, "-m", "nextscale.cli", "build", str(bundle), "--flavor", "tensorrt-rtx", "--json"]
    run = subprocess.run([*command, "--target", target, "--batch", batch], stdout=subprocess.PIPE, check=True)
    (built,) = json.loads(run.stdout)["targets"]
    engines = built["target"]["engines"]
    kept = ("graph", "seconds", "size", "layers")
    return {
        "recipe": name,
        "precision": precision,
        "target": target,
        "batch_sizes": built["target"]["batch_sizes"],
        "options": built["target"]["options"],
        "seconds": round(built["seconds"], 1),
        "bytes": built["bytes"],
        "weights_bytes": (bundle / "weights.safetensors").stat().st_size,
        "graphs_bytes": sum(path.stat().st_size for path in bundle.glob("*.onnx")),
        "bar_bytes": BAR.get(name),
        "engines": [{key: engine[key] for key in kept} for engine in engines],
    }


def show(row: dict[str, Any]) -> str:
    """One line of the table."""
    slowest = max(engine["seconds"] for engine in row["engines"])
    bar = "" if row["bar_bytes"] is None else "met" if row["bytes"] <= row["bar_bytes"] else "MISSED"
    return (
        f"{row['recipe']:24} {row['precision']:5} {row['seconds']:8.1f} {slowest:8.1f} {len(row['engines']):8} "
        f"{row['bytes'] / 1e6:9.1f} {row['weights_bytes'] / 1e6:11.0f} {bar:>7}"
    )


def main() -> None:
    """Measures, prints a table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = ["var-d16", "var-d16-fastvar", "var-d30", "var-d30-fastvar"]
    parser.add_argument("--recipe", nargs="+", default=everything)
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16"])
    parser.add_argument("--target", default="sm86")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--out", type=Path, default=RESULTS / "build.json")
    options = parser.parse_args()
    machine, rows = this_machine(), []
    print(f"{'recipe':24} {'':5} {'seconds':>8} {'slowest':>8} {'engines':>8} {'MB':>9} {'weights MB':>11} {'bar':>7}")
    with TemporaryDirectory(prefix="bench-build-") as folder:
        for precision in options.precision:
            traced: Traced = {}
            for name in options.recipe:
                rows.append(measure(Path(folder), name, precision, options.target, options.batch, traced))
                print(show(rows[-1]), flush=True)
    library = load("tensorrt-rtx")
    print(f"{machine.processor}, {machine.cores} cores, {machine.busy} busy with other work at the start")
    print(f"tensorrt-rtx {library.version}, parser {library.parser_version}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    setup = {"tensorrt-rtx": library.version, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}
    text = json.dumps({"machine": asdict(machine), "setup": setup, "builds": rows}, indent=1)
    options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
