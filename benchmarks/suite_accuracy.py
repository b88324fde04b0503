"""The demo model's accuracy at the shares that the suite prunes by: measured by examples/evaluate_demo.py, or found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from suite_subjects import FULL, INT8, Subject

EVALUATE = Path(__file__).parents[1] / "examples" / "evaluate_demo.py"
FILE, INTEGERS = "demo_quality.json", "int8.json"


def accuracy(subjects: Sequence[Subject], pictures: int, folder: Path, out: Path, threads: int) -> None:
    """Judges so many pictures of every variant that the subjects name, in full and pruned, from the same seeds."""
    names = dict.fromkeys(v.accuracy for s in subjects for v in s.variants if v.accuracy)
    words = [word for name in names for word in ("--variant", name)]
    settings = ["--pictures", str(pictures), "--threads", str(threads)]
    command = [sys.executable, str(EVALUATE), "--work", str(folder / "accuracy"), "--out", str(out / "accuracy")]
    subprocess.run([*command, *settings, *words], check=True)


def accuracies(results: Path) -> dict[str, dict[str, Any]]:
    """What is known of every variant, by the run of most pictures on any machine; of int8 by bench_int8.py."""
    found: dict[str, dict[str, Any]] = {}
    for path in results.glob(INTEGERS):
        for row in json.loads(path.read_text(encoding="utf-8"))["pictures"]["found"]:
            if row["recipe"] == FULL:
                losses = {f"accuracy_{name}": row[name] for name in ("loss", "loss_upper_bound")}
                found[INT8] = {**losses, "pictures": row["pictures"]}
    for path in (*results.glob(FILE), *sorted(results.glob(f"*/accuracy/{FILE}"))):
        for row in json.loads(path.read_text(encoding="utf-8"))["variants"]:
            if row["pictures"] > found.get(row["variant"], {"pictures": 0})["pictures"]:
                found[row["variant"]] = row
    return found
