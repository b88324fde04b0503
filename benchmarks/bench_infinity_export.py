"""What the export of a model larger than this machine would run costs: Infinity 2B or 8B in bf16, signatures checked.

    python benchmarks/bench_infinity_export.py [--size 2b 8b] [--recipe-tail 1m-fastvar]

Draws the checkpoint as upstream stores it (blocks in bf16; the 8B as a folder of shards) and exports it with the
command line, in a process of its own whose memory, and that of all it starts, is looked at ten times a second. The 2B
takes 10 GB of disk, the 8B 34 GB, in a temporary folder that is removed. Bars for the 2B: 5 minutes, and at most 1.3
times its weights file in memory (Pss, which counts mapped pages of files; anonymous memory is told beside it).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from watching import Watched, watched

from nextscale.compare.machine import OtherWork, this_machine
from nextscale.runtime.manifest import WEIGHTS_FILE

RESULTS = Path(__file__).parent / "results"
SECONDS, MEMORY = 300.0, 1.3
JUDGED = "infinity-2b"
Row = dict[str, Any]


def measure(name: str, folder: Path, smaller: Sequence[str] = (), schedule: Sequence[str] = ()) -> Row:
    """One recipe; ``smaller`` are options of `nextscale draw` for other numbers, ``schedule`` of both commands."""
    drawn, out = folder / "drawn", folder / "bundle"
    form = ["--format", "safetensors", "--blocks", "bf16"]
    drawing = command("draw", name, "-o", str(drawn), *form, *smaller, *schedule)
    (vae,) = drawn.glob("infinity_vae*")
    (model,) = {path for path in drawn.glob("infinity_*") if path != vae}
    files = ["--model", str(model), "--vae", str(vae)]
    how = ["--precision", "bf16", "--check", "signatures"]
    exporting = command("export", "--recipe", name, "-o", str(out), *files, *how, *schedule)
    weights = (out / WEIGHTS_FILE).stat().st_size
    row: Row = {
        "recipe": name,
        "checkpoint": size_of(model) + size_of(vae),
        "weights": weights,
        "bundle": size_of(out),
        "graphs": sum(path.stat().st_size for path in out.glob("*.onnx")),
        "draw_seconds": round(drawing.seconds, 1),
        "draw_peak_pss": drawing.pss,
        "seconds": round(exporting.seconds, 1),
        "peak_pss": exporting.pss,
        "peak_anonymous": exporting.anonymous,
        "peak_pss_over_weights": round(exporting.pss / weights, 3),
        "peak_anonymous_over_weights": round(exporting.anonymous / weights, 3),
    }
    return {**row, "bars": bars(row)}


def bars(row: Row) -> list[Row]:
    """Those of the 2B; other sizes are told, not judged."""
    if not row["recipe"].startswith(JUDGED):
        return []
    pairs = (("seconds", row["seconds"], SECONDS), ("peak_pss_over_weights", row["peak_pss_over_weights"], MEMORY))
    return [{"bar": what, "value": value, "at_most": most, "met": value <= most} for what, value, most in pairs]


def command(*arguments: str) -> Watched:
    """The command line in a process of its own; what it prints is not wanted."""
    return watched([sys.executable, "-m", "nextscale.cli", *arguments], every=0.1)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(part.stat().st_size for part in ([path] if path.is_file() else path.iterdir()))


def show(row: Row) -> str:
    """One line of the table."""
    met = ", ".join(f"{bar['bar']} {'met' if bar['met'] else 'MISSED'}" for bar in row["bars"])
    return (
        f"{row['recipe']:26} {row['seconds']:8.1f} {row['weights'] / 1e9:11.2f} {row['peak_pss'] / 1e9:8.2f} "
        f"{row['peak_pss_over_weights']:8.2f} {row['peak_anonymous'] / 1e9:12.2f} {row['graphs'] / 1e6:10.1f}  {met}"
    )


def main() -> None:
    """Measures, prints a table, writes infinity_export.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=("125m", "2b", "8b"), default=["2b"])
    parser.add_argument("--recipe-tail", default="1m-fastvar", help="what follows the size in the recipe's name")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; default: the system's place")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    other_work, rows = OtherWork(), list[Row]()
    print(
        f"{'recipe':26} {'seconds':>8} {'weights GB':>11} {'Pss GB':>8} {'/weights':>8} {'anonymous GB':>12} "
        f"{'graphs MB':>10}"
    )
    for size in options.size:
        with TemporaryDirectory(prefix="bench-infinity-export-", dir=options.folder) as at:
            rows.append(measure(f"infinity-{size}-{options.recipe_tail}", Path(at)))
        print(show(rows[-1]), flush=True)
    machine = this_machine(other_work)
    print(f"{machine.processor}, {machine.cores} cores, {machine.busy} busy with other work; {machine.versions}")
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": asdict(machine), "exports": rows}, indent=1)
    (options.out / "infinity_export.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
