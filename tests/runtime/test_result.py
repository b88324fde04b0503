"""Results: pixels, files, and what a file says about its picture."""

from __future__ import annotations

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


def test_metadata_of_other_files(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "other.png")
    assert read_metadata(tmp_path / "other.png") == {}
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="not a picture that can be read"):
        read_metadata(tmp_path / "text.png")
