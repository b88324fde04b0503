"""The benchmark of engines on an Infinity: its graphs without weights are a bundle that can be built, and a result."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

for needed in ("torch", "onnx"):
    pytest.importorskip(needed)

import bench_build as bench  # noqa: E402
from support.families import INFINITY  # noqa: E402

from nextscale.plan.methods import FastVAR  # noqa: E402
from nextscale.plan.recipes import Recipe  # noqa: E402
from nextscale.plan.schedules import squares  # noqa: E402
from nextscale.runtime.bundle import open_bundle  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # tracing


def tiny(name: str) -> Recipe:
    chosen = INFINITY.chosen(FastVAR({-1: 0.5}, -2))
    return replace(chosen, name=name, model=INFINITY.model, tokenizer=INFINITY.tokenizer, schedule=squares(1, 2))


def test_engines_of_graphs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[list[str]]()

    def build(command: list[str], **_: Any) -> SimpleNamespace:
        """What `nextscale build` says, of the bundle that it was given."""
        asked.append(command)
        graphs = open_bundle(command[command.index("build") + 1], "size").manifest.graphs
        engines = [{"graph": g.name, "seconds": 2.0, "size": 10, "layers": 3, "sha256": "0"} for g in graphs]
        target = {"engines": engines, "batch_sizes": [1], "options": {}}
        built = {"targets": [{"target": target, "seconds": 7.04, "bytes": 10 * len(engines)}]}
        return SimpleNamespace(stdout=json.dumps(built))

    monkeypatch.setattr(bench, "recipe", tiny)
    monkeypatch.setattr(subprocess, "run", build)
    monkeypatch.setattr(bench, "load", lambda flavor: SimpleNamespace(version="1.0", parser_version="2"))
    out = tmp_path / "results" / "infinity_build.json"
    arguments = ["--recipe", "infinity-2b-1m-fastvar", "--precision", "bf16", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_build.py", *arguments])
    bench.main()
    (row,) = json.loads(out.read_text())["builds"]
    assert asked[0][-4:] == ["--target", "sm86", "--batch", "1"]
    assert [engine["graph"] for engine in row["engines"]] == ["begin", "step_00", "step_01", "decode"]
    assert (row["recipe"], row["precision"], row["bytes"], row["bar_bytes"]) == (
        "infinity-2b-1m-fastvar",
        "bf16",
        40,
        None,
    )
    assert row["engines"][0] == {"graph": "begin", "seconds": 2.0, "size": 10, "layers": 3}
    assert row["weights_bytes"] > 100_000 > row["graphs_bytes"] / 10 > 1000
