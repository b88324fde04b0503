"""Arrays without copies: pictures written where the caller says, code sums read where they lie, a step's own arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.bundles import break_output

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.errors import NonFiniteError, PipelineClosed


class Replaying(OnnxRuntime):
    """Asked for whole pictures, as a device is."""

    replays = True


@pytest.fixture(params=[False, True], ids=["stepwise", "whole"])
def made(request: pytest.FixtureRequest, bundle: Path) -> Pipeline:
    backend = Replaying(threads=1) if request.param else OnnxRuntime(threads=1)
    return Pipeline.open(bundle, backend, batch_sizes=(1, 3))


def picture_shape(pipeline: Pipeline, count: int) -> tuple[int, ...]:
    return (count, 3, *pipeline.manifest.plan.image_size)


@pytest.mark.parametrize("count", [1, 3, 5])  # a full batch, another, a full one and one that is filled up
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_pictures_go_where_the_caller_says(made: Pipeline, count: int, library: str, tmp_path: Path) -> None:
    labels = [0, 1, 2, 0, 1][:count]
    shape = picture_shape(made, count)
    out: Any = np.full(shape, -1, np.float32) if library == "numpy" else torch.full(shape, -1.0)
    for seed in (3, 4, 5):  # a first run, a capture, a replay
        result = made.generate(labels, seed=seed, out=out)
        expected = made.generate(labels, seed=seed)
        assert np.array_equal(np.asarray(out).transpose(0, 2, 3, 1), expected.floats)
        for ours, theirs in zip(result.tokens, expected.tokens, strict=True):
            assert np.array_equal(ours, theirs)
        with pytest.raises(InputError, match="given as out"):
            result.save(tmp_path / "nowhere")
        assert not (tmp_path / "nowhere").exists()


def test_pictures_of_a_call_that_is_watched_go_there_too(made: Pipeline) -> None:
    out, seen = np.empty(picture_shape(made, 2), np.float32), []
    made.generate([0, 1], seed=1, out=out, on_step=lambda step: seen.append(step.index))
    assert seen == [0, 1, 2, 3]
    assert np.array_equal(out.transpose(0, 2, 3, 1), made.generate([0, 1], seed=1).floats)


def test_what_cannot_take_pictures_is_refused(made: Pipeline) -> None:
    count, _, height, width = picture_shape(made, 1)
    refused: list[tuple[object, str]] = [
        (np.empty((count, 3, height, width), np.float64), "out is float32 of shape"),
        (np.empty((2, 3, height, width), np.float32), "out is float32 of shape"),
        (np.empty((count, 3, height, 2 * width), np.float32)[..., ::2], "contiguous"),
        ("here", "out: str is no array"),
    ]
    for out, message in refused:
        with pytest.raises(InputError, match=message):
            made.generate(0, out=out)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_code_sums_are_decoded_from_the_host_and_where_they_lie(made: Pipeline, count: int) -> None:
    steps = list(made.stream([0, 1, 2, 0, 1][:count], seed=7))
    code_sum = np.concatenate([step.code_sum for step in steps if step.last])
    expected = made.generate([0, 1, 2, 0, 1][:count], seed=7).floats
    from_host, lent = made.decode(code_sum), made.decode(torch.from_numpy(code_sum))
    assert from_host is not None
    assert lent is not None
    assert np.array_equal(from_host, expected)
    assert np.allclose(lent, expected, atol=1e-5)  # in batches of one and three where the others were filled up
    for given in (code_sum, torch.from_numpy(code_sum)):
        out = torch.zeros(picture_shape(made, count))
        assert made.decode(given, out=out) is None
        assert np.allclose(out.numpy().transpose(0, 2, 3, 1), expected, atol=1e-5)


def test_code_sums_that_are_none_are_refused(bundle: Path, made: Pipeline) -> None:
    good = next(iter(made.stream(0))).code_sum
    for bad in (good[0], good.astype(np.float64), good[:, :, :1], good[:0], [1.0], "x", None):
        with pytest.raises(InputError, match="code_sum is an array float32"):
            made.decode(bad)
    with pytest.raises(InputError, match="add up to"), Pipeline.open(bundle, batch_sizes=(2,), threads=1) as pairs:
        pairs.decode(torch.from_numpy(np.concatenate([good] * 3)))
    made.close()
    with pytest.raises(PipelineClosed):
        made.decode(good)


def test_a_broken_decoder_gives_no_picture_there_either(own_bundle: Path) -> None:
    with Pipeline.open(own_bundle, threads=1) as pipeline:
        code_sum = next(iter(pipeline.stream(0, seed=0))).code_sum
    break_output(own_bundle, "decode", "image.out")
    with Pipeline.open(own_bundle, threads=1) as pipeline:
        for given in (code_sum, torch.from_numpy(code_sum)):
            with pytest.raises(NonFiniteError, match=r"image\.out of decode"):
                pipeline.decode(given)


def test_a_steps_arrays_are_the_slots_own_until_the_next(made: Pipeline) -> None:
    stream = made.stream([0, 1], seed=2)
    first = next(stream)
    for name, copy in (("tokens", first.tokens), ("code_sum", first.code_sum), ("logits", first.logits())):
        lent, again = first.array(name), first.array(name)
        assert np.array_equal(lent, copy)
        assert lent.ctypes.data == again.ctypes.data
        assert torch.from_dlpack(lent).data_ptr() == lent.ctypes.data
    with pytest.raises(InputError, match=r"logits, tokens, code_sum; found 'image'"):
        first.array("image")
    next(stream)
    with pytest.raises(InputError, match="tokens of a step are gone"):
        first.array("tokens")


def test_a_slot_remembers_few_foreign_addresses(made: Pipeline) -> None:
    arrays = [np.empty(picture_shape(made, 1), np.float32) for _ in range(12)]
    for out in arrays:
        made.generate(0, seed=0, out=out)
    chain = made._slots._free[0].fitting(0)
    assert len(chain._lent) == 8
