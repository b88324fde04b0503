"""What an export costs: time, memory and disk, for a drawn checkpoint of published size.

    python benchmarks/bench_export.py [--recipe var-d16 ...] [--repeat 1]

Draws the checkpoint into a temporary folder, exports and verifies it with the command line in a process of its own,
and samples that process's Pss (a shared page by its share). Bars for var-d16 on 2 cores: 2 minutes, 2.5 times the
checkpoint, 1.05 times the two checkpoint files.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nextscale.compare.machine import this_machine

RESULTS = Path(__file__).parent / "results"


def pss_of(pid: int) -> int:
    """Proportional set size of a process in bytes; 0 once it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def watched(command: list[str]) -> tuple[float, int]:
    """Runs a command; seconds, and the highest Pss that was seen, looked at ten times a second."""
    start, peak = time.perf_counter(), 0
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while running.poll() is None:
        peak = max(peak, pss_of(running.pid))
        time.sleep(0.1)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return time.perf_counter() - start, peak


def measure(recipe: str, folder: Path, repeat: int) -> dict[str, Any]:
    """One recipe: exports ``repeat`` times; the checkpoint is drawn once."""
    base = recipe.removesuffix("-fastvar")
    drawn = folder / base
    if not drawn.exists():
        watched([sys.executable, "-m", "nextscale.cli", "draw", base, "-o", str(drawn)])
    model, vae = sorted(drawn.glob("var*")), sorted(drawn.glob("vae*"))
    checkpoint = model[0].stat().st_size + vae[0].stat().st_size
    runs = []
    for i in range(repeat):
        out = folder / f"{recipe}-{i}"
        command = [sys.executable, "-m", "nextscale.cli", "export", "--recipe", recipe, "-o", str(out)]
        seconds, peak = watched([*command, "--model", str(model[0]), "--vae", str(vae[0])])
        size = sum(p.stat().st_size for p in out.iterdir())
        runs.append({"seconds": round(seconds, 1), "peak_pss": peak, "bundle": size})
    return {
        "recipe": recipe,
        "checkpoint": checkpoint,
        "seconds": statistics.median(r["seconds"] for r in runs),
        "peak_pss_over_checkpoint": round(max(r["peak_pss"] for r in runs) / checkpoint, 3),
        "bundle_over_checkpoint": round(runs[0]["bundle"] / checkpoint, 4),
        "runs": runs,
    }


def main() -> None:
    """Measures, prints a table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["var-d16", "var-d16-fastvar"])
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    machine = this_machine()
    with TemporaryDirectory(prefix="bench-export-") as name:
        rows = [measure(recipe, Path(name), options.repeat) for recipe in options.recipe]
    print(f"{machine.processor}, {machine.cores} cores, {machine.busy} busy with other work; {machine.versions}")
    print(f"{'recipe':20} {'seconds':>8} {'Pss/checkpoint':>15} {'bundle/checkpoint':>18}")
    for row in rows:
        print(
            f"{row['recipe']:20} {row['seconds']:8.1f} {row['peak_pss_over_checkpoint']:15.2f} "
            f"{row['bundle_over_checkpoint']:18.3f}"
        )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "export.json"
    path.write_text(json.dumps({"machine": asdict(machine), "exports": rows}, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


if __name__ == "__main__":
    main()
