"""Exported step graphs share one copy of their weights: what the whole arrangement of small engines rests on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny import SCHEDULE, TOKENIZER, export_tiny

from nextscale.export.draw import draw_checkpoint
from nextscale.plan.recipes import var_model
from nextscale.runtime.backends.packed.build import build_packed
from nextscale.runtime.bundle import open_bundle


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two wide layers, as what a session holds of its own, some 1 MB, goes by the nodes of its graph."""
    folder = tmp_path_factory.mktemp("wide")
    model = var_model(2, 1024, heads=16, classes=10, vocabulary=64)
    return export_tiny(draw_checkpoint(model, TOKENIZER, SCHEDULE, folder, 0, "safetensors"), folder / "out")


@pytest.mark.timeout(600)  # half a minute of work, on a machine with nothing else to do
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_four_step_sessions_hold_the_weights_once_in_pages_of_the_file(wide: Path) -> None:
    """100 MB in the steps: ONNX Runtime may neither pack, fold nor copy them (with prepacking on it does)."""
    anonymous, pss, weights = measured(wide)
    assert weights > 96e6
    assert anonymous < 0.1 * weights
    assert pss < 1.25 * weights
    assert measured(wide, "prepack")[0] > 2 * weights  # the measure sees copies


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_packed_sessions_hold_the_packed_weights_once_in_pages_of_their_file(wide: Path) -> None:
    report = build_packed(open_bundle(wide), wide.with_name(f"{wide.name}.targets"), lambda *told: None)
    assert report.packed.weights.size < 2.1 * wide.joinpath("weights.safetensors").stat().st_size
    anonymous, pss, weights = measured(wide, "packed")
    assert anonymous < 0.15 * weights
    assert pss < 1.3 * weights


def measured(bundle: Path, *options: str) -> list[int]:
    """In a process of its own."""
    command = [sys.executable, "-m", "support.shared_weights", str(bundle), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return [int(x) for x in done.stdout.split()]
