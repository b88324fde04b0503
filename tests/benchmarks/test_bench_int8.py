"""The benchmark of int8 on a tiny bundle: what it counts, and that its tables are the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

for needed in ("torch", "onnx", "onnxruntime", "matplotlib"):
    pytest.importorskip(needed)

import bench_int8 as bench  # noqa: E402
from bench_precision import RESULTS  # noqa: E402
from int8_tables import tables  # noqa: E402
from support import tiny  # noqa: E402
from support.packed import pack  # noqa: E402


@pytest.mark.timeout(600)
def test_a_pair_is_timed_graph_by_graph(
    tiny_checkpoint: tuple[Path, Path], tiny_traced: dict[Any, Any], tmp_path: Path
) -> None:
    pair = [
        tiny.export_tiny(tiny_checkpoint, tmp_path / precision, "var-d16", tiny_traced, precision)
        for precision in bench.PRECISIONS
    ]
    for bundle in pair:
        pack(bundle)
    found = bench.pair_times(pair, runs=2, threads=1)
    assert found["weights"][1] < found["weights"][0]
    for side in found["graphs"].values():
        assert list(side)[-2:] == ["without decode", "picture"]
        assert {one["runs"] for one in side.values()} == {2}
        assert side["without decode"]["median"] < side["picture"]["median"]
    assert all(product["int8_gflops"] > 0 for product in found["rates"]["products"])
    assert {*found["roofline"]} == {*bench.PRECISIONS}


def test_the_committed_table_is_the_committed_result() -> None:
    report = json.loads((RESULTS / "int8.json").read_text(encoding="utf-8"))
    assert tables(report) == (RESULTS / "int8.md").read_text(encoding="utf-8")
    for row in report["pictures"]["found"]:
        assert row["pictures"] >= 2000
        assert row["loss_upper_bound"] < 0.01, "accuracy is within a point"
    alone = {row["layers"]: row["rms"] for row in report["layers"]["found"]}
    assert max(alone, key=lambda layers: alone[layers]) == "all of an int8 bundle"
