"""Bundles that are conditioned on text, on doubles of a GPU: prompts go through the device, pictures are the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import text_plan, write_bundle

from nextscale.runtime import Pipeline
from nextscale.runtime.bundle import open_bundle

PROMPTS = ["a red cat", "castle", "a green castle"]


@pytest.fixture(scope="module", params=[False, True], ids=["cross", "prefix"])
def texts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for TensorRT's addresses."""
    return write_bundle(tmp_path_factory.mktemp("texts") / "texts", text_plan(request.param, width=32))


@pytest.fixture
def reference(texts: Path) -> Iterator[Pipeline]:
    with Pipeline.open(texts, threads=1) as pipeline:
        yield pipeline


@pytest.fixture
def on_device(gpu: Any, texts: Path) -> Any:
    """The double of a machine, with the bundle of texts."""
    gpu.bundle = open_bundle(texts)
    return gpu


@pytest.mark.parametrize("flavor", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_prompts_make_the_pictures_of_the_cpu(on_device: Any, reference: Pipeline, flavor: str) -> None:
    if flavor != "onnxruntime":
        on_device.build(flavor)
    pipeline = on_device.open(flavor, batch_sizes=(1, 2))
    against = "red" if reference.manifest.plan.model().text.use == "cross" else None  # type: ignore[union-attr]
    for seed in (1, 2):  # the capture's first run, then replays
        ours, theirs = (p.generate(PROMPTS, negative=against, seed=seed) for p in (pipeline, reference))
        assert np.array_equal(ours.floats, theirs.floats)
        assert all(map(np.array_equal, ours.tokens, theirs.tokens))
    for (rows, length), (wanted, count) in zip(pipeline.encode(PROMPTS), reference.encode(PROMPTS), strict=True):
        assert length == count
        assert np.array_equal(rows, wanted)
    steps = [step.tokens for step in pipeline.stream(PROMPTS[:1], seed=9)]
    assert all(map(np.array_equal, steps, reference.generate(PROMPTS[:1], seed=9).tokens))
