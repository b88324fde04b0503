"""A service's view of a bundle runs as it is printed: pictures, previews, cancellation, threads, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import embed
import pytest
from PIL import Image

from nextscale.runtime import Pipeline
from nextscale.runtime.result import read_metadata


def test_every_kind_of_call(tiny_pruned_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed.main([str(tiny_pruned_bundle), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "weights (one copy)" in said.out
    assert "3 pictures in" in said.out
    assert "after 2 steps: the call was cancelled" in said.out
    assert "4 calls at once" in said.out
    assert "refused: top_p is a number above 0" in said.out
    assert "too late: the call ran past its timeout" in said.out
    names = [f"seed7-{i:05d}-class{label}.png" for i, label in enumerate((0, 1, 10))]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["preview-00.png", "preview-02.png", "preview-03.png", *names]
    assert read_metadata(tmp_path / names[1])["nextscale.guidance_scale"] == "3.0"


def test_the_last_preview_is_the_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    with Pipeline.open(tiny_bundle, threads=1) as pipeline:
        embed.previews(pipeline, tmp_path)
        wanted = pipeline.generate(1, seed=7).images[0]
    with Image.open(tmp_path / "preview-03.png") as image:
        assert image.tobytes() == wanted.tobytes()


def test_a_call_that_is_given_up_frees_its_slot(tiny_bundle: Path) -> None:
    with Pipeline.open(tiny_bundle, threads=1, slots=1, wait=0.0) as pipeline:
        assert embed.given_up(pipeline) == 2
        assert len(pipeline.generate(0, seed=0)) == 1


def test_calls_at_once_make_what_calls_alone_make(tiny_bundle: Path) -> None:
    with Pipeline.open(tiny_bundle, threads=1, slots=2) as pipeline:
        for seed, result in enumerate(embed.at_once(pipeline)):
            assert result.seed == seed
            assert result.images.tobytes() == pipeline.generate(0, seed=seed).images.tobytes()


def test_as_a_script_it_needs_no_pytorch_and_says_what_is_wrong(tiny_checkpoint: tuple[Path, Path]) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv.pop(0)\nrunpy.run_path(sys.argv[0], {}, '__main__')"
    )
    folder = tiny_checkpoint[0].parent
    run = subprocess.run(
        [sys.executable, "-c", code, embed.__file__, folder], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.strip().splitlines() == [
        f"{folder} is not a bundle: it has no manifest.json; make one with `nextscale export`"
    ]
