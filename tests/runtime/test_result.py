"""Results: pixels, files, and what a file says about its picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.runtime import Pipeline, Result, __version__
from nextscale.runtime.result import read_metadata, to_uint8


@pytest.fixture
def result(pipeline: Pipeline) -> Result:
    return pipeline.generate([2, None], seed=5, first_image=7, guidance_scale=[1.0, 2.5])


def test_pixels_are_rounded_to_the_nearest() -> None:
    levels = np.array([0, 0.4 / 255, 0.6 / 255, 127.5 / 255, 1, -0.1, 1.1], np.float32)
    assert to_uint8(levels).tolist() == [0, 0, 1, 128, 255, 0, 255]


def test_saved_pictures_can_be_made_again(pipeline: Pipeline, result: Result, tmp_path: Path) -> None:
    paths = result.save(tmp_path / "out" / "deep")
    assert [p.name for p in paths] == ["seed5-00007-class2.png", "seed5-00008-class3.png"]
    for i, path in enumerate(paths):
        with Image.open(path) as image:
            np.testing.assert_array_equal(np.asarray(image), result.images[i])
        found = read_metadata(path)
        assert found["nextscale.bundle_sha256"] == pipeline.bundle.digest
        assert found["nextscale.recipe"] == "tiny version 1"
        assert __version__ in found["nextscale.versions"]
        assert "onnxruntime" in found["nextscale.versions"]
        label = int(found["nextscale.label"])
        again = pipeline.generate(
            None if label == 3 else label,
            seed=int(found["nextscale.seed"]),
            first_image=int(found["nextscale.image"]),
            guidance_scale=float(found["nextscale.guidance_scale"]),
            top_p=float(found["nextscale.top_p"]),
            temperature=float(found["nextscale.temperature"]),
        )
        np.testing.assert_array_equal(again.images[0], result.images[i])


def test_timings_name_every_graph(result: Result) -> None:
    names = ["begin", "step_00", "step_01", "step_02", "step_03", "decode"]
    assert [t.graph for t in result.timings] == names
    assert list(result.step_seconds) == names
    assert 0 < sum(result.step_seconds.values()) <= result.seconds


def test_a_folder_that_cannot_be_written(result: Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="pictures cannot be written to"):
        result.save(tmp_path / "file")


def test_a_full_disk_leaves_no_half_picture(pipeline: Pipeline, result: Result, tmp_path: Path) -> None:
    """The limit on file sizes stands for the disk: a write beyond it fails with an OSError, in a process of its own."""
    pytest.importorskip("resource")
    (path,) = pipeline.generate(2, seed=5, first_image=7).save(tmp_path)
    before = path.read_bytes()
    code = (
        "import resource, signal, sys; from nextscale.runtime import Pipeline\n"
        "made = Pipeline.open(sys.argv[1], threads=1).generate([2, None], seed=5, first_image=7, guidance_scale=3)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2},) * 2)\n"
        "from nextscale.plan.errors import EnvironmentProblem\n"
        "try:\n    made.save(sys.argv[2])\n"
        "except EnvironmentProblem as error:\n    print(error)"
    )
    command = [sys.executable, "-c", code, str(pipeline.bundle.folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"pictures cannot be written to {tmp_path}: File too large\n"
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_metadata_of_other_files(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "other.png")
    assert read_metadata(tmp_path / "other.png") == {}
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="not a picture that can be read"):
        read_metadata(tmp_path / "text.png")
