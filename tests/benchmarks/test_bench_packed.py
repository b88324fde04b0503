"""The benchmark of packed weights on a tiny bundle, and its bars on figures that are made up."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import bench_packed as bench
import pytest


def test_every_graph_is_measured_in_every_way(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    report = bench.bench(bundle, runs=2, threads=1, memory_too=False)
    assert {*report["graphs"]} == {*bench.WAYS}
    graphs = {path.stem for path in bundle.glob("*.onnx")}
    for seen in report["graphs"].values():
        assert {*seen} == {*graphs, "picture"}
        assert all(each["runs"] == 2 and 0 < each["low"] <= each["median"] for each in seen.values())
        assert sum(seen[graph]["median"] for graph in graphs) < 1.5 * seen["picture"]["median"]
    (target,) = bundle.with_name("tiny.targets").iterdir()
    files = [path for path in target.iterdir() if path.name != "packed.json"]
    assert report["packed"]["bytes"] == sum(path.stat().st_size for path in files)
    assert {*report["opens"]} == {"unpacked, size", "packed, size", "packed, full"}


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({}, set()),
        ({"step": 1.2}, {"slowest graph against its own copy (step_00)"}),
        ({"peak": 1700}, {"peak Pss over what is allowed"}),
        ({"open": 3.5}, {"seconds to open, lengths checked"}),
        ({"hashed": 3.5}, {"seconds to open, every file that is read hashed"}),
        ({"bytes": 2300}, {"size on disk over the weights"}),
    ],
)
def test_bars_say_what_the_figures_say(change: dict[str, float], missed: set[str]) -> None:
    step, peak = change.get("step", 1.0), change.get("peak", 1500)
    figures: dict[str, dict[str, Any]] = {
        "packed": {"begin": {"median": 1.0}, "step_00": {"median": 2.0 * step}},
        "own copies": {"begin": {"median": 1.0}, "step_00": {"median": 2.0}},
    }
    report = {
        "graphs": figures,
        "weights": 1000,
        "workspace": 200,
        "packed": {"bytes": change.get("bytes", 2000)},
        "peaks": {"packed": peak, f"packed, {bench.PROCESSES} processes": 2100},
        "opens": {"packed, size": change.get("open", 2.0), "packed, full": change.get("hashed", 2.5)},
    }
    assert {row["bar"] for row in bench.bars(report) if not row["met"]} == missed
