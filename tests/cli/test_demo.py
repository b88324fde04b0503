"""``nextscale demo``, on a drawn checkpoint of the demo's layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.command import Command

from nextscale.cli.demo import checkpoint_files

QUICK = ("--n", "2", "--threads", "1")
SCHEDULE = tiny.SCHEDULE


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the demo's folder holds one, with names of its classes."""
    from nextscale.export.draw import draw_checkpoint

    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    model = dataclasses.replace(tiny.MODEL, classes=2)
    files = draw_checkpoint(model, tiny.TOKENIZER, SCHEDULE, folder, 0, "safetensors")
    for path, name in zip(files, ("var", "vae"), strict=True):
        path.rename(folder / f"{name}.safetensors")
    config = {"patch_nums": [h for h, _ in SCHEDULE], "class_names": ["ring", "moon"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_demo_makes_bundles_pictures_and_a_report_and_again(
    nextscale: Command, small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "demo"
    run = nextscale("demo", "--checkpoint", small, "-o", out, *QUICK)
    assert run.status == 0, run.err
    grid = out / "full-beside-fastvar.png"
    for text in (f"pictures, full beside FastVAR: {grid}", f"report: {out / 'report' / 'report.html'}", "of its FLOPs"):
        assert text in run.out
    last = run.out.strip().splitlines()
    assert any("times as fast" in line for line in last[-6:])
    with Image.open(grid) as image:
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 50
    manifests = [json.loads((out / "engines" / n / "manifest.json").read_text()) for n in ("demo", "demo-fastvar")]
    assert [m["recipe"]["name"] for m in manifests] == ["demo", "demo-fastvar"]
    assert all(m["classes"] == ["ring", "moon"] for m in manifests)

    (out / "mine.txt").write_text("mine")
    before = (out / "engines/demo/manifest.json").stat().st_mtime_ns
    assert nextscale("demo", "--checkpoint", small, "-o", out, *QUICK).status == 0
    assert (out / "mine.txt").exists()
    assert (out / "engines/demo/manifest.json").stat().st_mtime_ns > before


def test_a_folder_of_something_else_is_refused_and_left_alone(nextscale: Command, small: Path, tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines/thesis.tex").write_text("words")
    run = nextscale("demo", "--checkpoint", small, "-o", tmp_path, *QUICK)
    assert run.status == 2
    assert "not a folder of this command" in run.sentence
    assert [p.name for p in tmp_path.rglob("*")] == ["engines", "thesis.tex"]


def test_a_folder_without_a_checkpoint_is_refused(nextscale: Command, tmp_path: Path) -> None:
    run = nextscale("demo", "--checkpoint", tmp_path, "-o", tmp_path / "demo")
    assert run.status == 2
    assert "does not hold var.safetensors" in run.sentence
    assert not (tmp_path / "demo").exists()


def test_the_repositorys_checkpoint_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(__file__).resolve().parents[2] / "checkpoints/demo"
    assert checkpoint_files(None) == (folder / "var.safetensors", folder / "vae.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_demo(nextscale: Command, tmp_path: Path) -> None:
    run = nextscale("demo", "-o", tmp_path / "demo", "--n", "4")
    assert run.status == 0, run.err
    assert "demo-fastvar: parity held" in run.out
    report = json.loads((tmp_path / "demo/report/report.json").read_text())
    assert report["labels"] == ["A", "2", "circle", "heart"]
    full, pruned = report["summary"][-2:]
    assert pruned["flops"] < 0.9 * full["flops"]
    assert full["ssim"] > 0.999
    assert pruned["ssim"] > 0.5  # a drawn model's are below
