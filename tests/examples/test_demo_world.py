"""The drawn world: pictures are a function of their index, read at a glance, and know their class."""

from __future__ import annotations

import numpy as np
import pytest

demo_world = pytest.importorskip("demo_world", exc_type=ImportError)
pytest.importorskip("matplotlib")


def test_a_picture_depends_on_its_index_alone() -> None:
    together = demo_world.pictures(40, 8, workers=0)
    alone = np.stack([demo_world.picture(index) for index in range(47, 39, -1)])[::-1]
    assert np.array_equal(together, alone)
    assert together.dtype == np.uint8
    assert together.shape == (8, 64, 64, 3)
    assert not np.array_equal(together[0], demo_world.picture(40 + len(demo_world.CLASS_NAMES)))


def test_workers_draw_what_one_process_draws() -> None:
    assert np.array_equal(demo_world.pictures(0, 600, workers=2)[::97], demo_world.pictures(0, 600, workers=0)[::97])


def test_classes_are_balanced_and_follow_the_index() -> None:
    labels = demo_world.labels(3, 160)
    assert labels[0] == demo_world.label(3) == 3
    assert set(np.bincount(labels)) == {10}
    assert len(set(demo_world.CLASS_NAMES)) == 16


def test_the_drawing_stands_out_from_its_background() -> None:
    # The corner is background; what differs most from it in brightness must do so clearly, in every picture.
    grey = demo_world.pictures(0, 320, workers=0) @ np.array([0.299, 0.587, 0.114])
    contrast = np.abs(grey - grey[:, :1, :1]).reshape(320, -1)
    assert np.quantile(contrast, 0.99, axis=1).min() > 50


def test_training_and_fresh_pictures_never_meet() -> None:
    assert demo_world.TRAINING[1] <= demo_world.FRESH[0]


def test_the_contact_sheet_holds_every_picture() -> None:
    images = demo_world.pictures(0, 5, workers=0)
    sheet = np.asarray(demo_world.contact_sheet(images, columns=3))
    assert sheet.shape == (128, 192, 3)
    assert np.array_equal(sheet[64:, 64:128], images[4])
