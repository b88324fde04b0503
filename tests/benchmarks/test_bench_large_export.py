"""The benchmark of large exports: one tiny export through the command line, its memory, its bars."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

for needed in ("torch", "onnx", "onnxruntime"):
    pytest.importorskip(needed)

import bench_large_export as bench  # noqa: E402
from watching import family, memory_of, watched  # noqa: E402

from nextscale.runtime.bundle import open_bundle  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # tracing
NUMBERS = {"depth": "1", "width": "64", "heads": "2", "text-width": "48", "channels": "32", "multipliers": "1,2"}
SMALLER = [word for name, value in NUMBERS.items() for word in (f"--{name}", value)]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_tiny_export(tmp_path: Path) -> None:
    row = bench.measure("infinity-2b-0.06m", tmp_path, SMALLER, ["--schedule", "1,2"])
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.precision == "bf16"
    assert [each.max_error for each in bundle.manifest.verified] == [None] * len(bundle.manifest.graphs), "not run"
    assert row["weights"] == (tmp_path / "bundle" / "weights.safetensors").stat().st_size
    assert row["weights"] + row["graphs"] < row["bundle"] < row["weights"] + row["graphs"] + 1e6
    assert row["peak_pss"] >= row["peak_anonymous"] > 50e6, "PyTorch alone takes more"
    assert row["peak_pss_over_weights"] == round(row["peak_pss"] / row["weights"], 3)
    assert [bar["bar"] for bar in row["bars"]] == ["seconds", "peak_pss_over_weights"]
    assert row["bars"][1]["met"] is False, "libraries weigh more than this model"
    assert "infinity-2b-0.06m" in bench.show(row)


def test_bars_are_those_of_the_2b() -> None:
    row = {"recipe": "infinity-2b-1m-fastvar", "seconds": 299.0, "peak_pss_over_weights": 1.31}
    assert [bar["met"] for bar in bench.bars(row)] == [True, False]
    assert bench.bars({**row, "recipe": "infinity-8b-1m"}) == []


def test_a_row_takes_the_place_of_its_recipes_and_of_no_other(tmp_path: Path) -> None:
    path = tmp_path / "large_export.json"
    assert bench.kept(path, [{"recipe": "a", "seconds": 1}]) == [{"recipe": "a", "seconds": 1}]
    path.write_text(json.dumps({"exports": [{"recipe": "a", "seconds": 1}, {"recipe": "b", "seconds": 2}]}))
    assert bench.kept(path, [{"recipe": "a", "seconds": 3}]) == [
        {"recipe": "b", "seconds": 2},
        {"recipe": "a", "seconds": 3},
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_of_what_a_command_starts_counts() -> None:
    child = "data = b'x' * 60_000_000; import time; time.sleep(1)"
    parent = f"import subprocess, sys; print(sys.stdin.read()); subprocess.run([sys.executable, '-c', {child!r}])"
    seen = watched([sys.executable, "-c", parent], "said")
    assert seen.output == "said\n"
    assert 60e6 < seen.anonymous <= seen.pss < 300e6
    assert seen.seconds > 1


def test_a_command_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="ended with 3"):
        watched([sys.executable, "-c", "raise SystemExit(3)"])
    assert list(family(2**22 + 1)) == [2**22 + 1]
    assert memory_of(2**22 + 1) == (0, 0)
