"""What the export of a model that is large for this machine costs: in bf16, signatures checked.

    python benchmarks/bench_large_export.py [--recipe infinity-2b-1m-fastvar infinity-8b-1m-fastvar hart-1024]

Draws the checkpoint as upstream stores it (Infinity's blocks in bf16, the 8B as a folder of shards; HART in float32)
and exports it with the command line, in a process of its own whose memory, and that of all it starts, is looked at ten
times a second. Infinity's 2B takes 10 GB of disk, its 8B 34 GB, in a temporary folder that is removed. Bars for
Infinity's 2B: 5 minutes, and at most 1.3 times its weights file in memory (Pss, which counts mapped pages of files;
anonymous memory is told beside it). Rows of other recipes stay in the result file, each with the machine of its run.
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
from nextscale.plan.recipes import recipe
from nextscale.runtime.manifest import WEIGHTS_FILE

RESULTS = Path(__file__).parent / "results"
SECONDS, MEMORY = 300.0, 1.3
JUDGED = "infinity-2b"
Row = dict[str, Any]


def measure(name: str, folder: Path, smaller: Sequence[str] = (), schedule: Sequence[str] = ()) -> Row:
    """One recipe; ``smaller`` are options of `nextscale draw` for other numbers, ``schedule`` of both commands."""
    drawn, out = folder / "drawn", folder / "bundle"
    blocks = ["--blocks", "bf16"] if recipe(name).model.family == "infinity" else []
    drawing = command("draw", name, "-o", str(drawn), "--format", "safetensors", *blocks, *smaller, *schedule)
    (vae,) = (path for path in drawn.iterdir() if "vae" in path.name or path.name == "tokenizer")
    (model,) = (path for path in drawn.iterdir() if path != vae)
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


def kept(path: Path, rows: Sequence[Row]) -> list[Row]:
    """The rows of a result file with new ones in the place of those of the same recipe."""
    before = json.loads(path.read_text(encoding="utf-8"))["exports"] if path.exists() else []
    made = {row["recipe"] for row in rows}
    return [*(row for row in before if row["recipe"] not in made), *rows]


def main() -> None:
    """Measures, prints a table, writes large_export.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=[JUDGED + "-1m-fastvar"], help="of Infinity or HART")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made; default: the system's place")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    path: Path = options.out / "large_export.json"
    print(
        f"{'recipe':26} {'seconds':>8} {'weights GB':>11} {'Pss GB':>8} {'/weights':>8} {'anonymous GB':>12} "
        f"{'graphs MB':>10}"
    )
    for name in options.recipe:
        other_work = OtherWork()
        with TemporaryDirectory(prefix="bench-large-export-", dir=options.folder) as at:
            row = measure(name, Path(at))
        row["machine"] = asdict(this_machine(other_work))
        print(show(row), flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"exports": kept(path, [row])}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
