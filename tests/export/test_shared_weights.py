"""Exported step graphs share one copy of their weights: what the whole arrangement of small engines rests on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import SCHEDULE, TOKENIZER, export_tiny

from nextscale.export.draw import draw_checkpoint
from nextscale.plan.recipes import var_model


@pytest.mark.timeout(600)  # half a minute of work, on a machine with nothing else to do
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_four_step_sessions_hold_the_weights_once_in_pages_of_the_file(tmp_path: Path) -> None:
    """100 MB in the steps: ONNX Runtime may neither pack, fold nor copy them (with prepacking on it does).

    Two wide layers, as what a session holds of its own, some 1 MB, goes by the nodes of its graph.
    """
    model = var_model(2, 1024, heads=16, classes=10, vocabulary=64)
    bundle = export_tiny(draw_checkpoint(model, TOKENIZER, SCHEDULE, tmp_path, 0, "safetensors"), tmp_path / "out")
    anonymous, pss, weights = measured(bundle)
    assert weights > 96e6
    assert anonymous < 0.1 * weights
    assert pss < 1.25 * weights
    assert measured(bundle, "prepack")[0] > 2 * weights  # the measure sees copies


def measured(bundle: Path, *options: str) -> list[int]:
    """In a process of its own."""
    command = [sys.executable, "-m", "support.shared_weights", str(bundle), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return [int(x) for x in done.stdout.split()]
