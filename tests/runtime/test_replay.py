"""A backend that replays: whole pictures without the host between their steps, the same pictures as step by step.

ONNX Runtime on the CPU stands in for one: its calls run one after the other, in the order of the capture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from support.bundles import break_output

from nextscale.runtime import Pipeline
from nextscale.runtime.backends.base import Call, Loaded, Memory
from nextscale.runtime.backends.onnxruntime import OnnxRuntime, Sessions
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import NonFiniteError, PipelineClosed


class Recording(Sessions):
    """Sessions that write down what is captured, and whether they were closed."""

    def capture(self, memory: Memory, calls: Sequence[Call]) -> Call:
        self.captured: list[int] = [*getattr(self, "captured", []), len(calls)]
        return super().capture(memory, calls)

    def close(self) -> None:
        self.closed = getattr(self, "closed", 0) + 1


class Replaying(OnnxRuntime):
    """ONNX Runtime asked for whole pictures."""

    replays = True
    loaded: Recording

    def open(self, bundle: Bundle, batch_sizes: tuple[int, ...] | None = None) -> Loaded:
        made = super().open(bundle, batch_sizes)
        self.loaded = Recording(made._sessions, made.fixed["weights"], made.batch_sizes, made.text_lengths)
        return self.loaded


@pytest.fixture
def replaying(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.open(bundle, Replaying(threads=1), batch_sizes=(1, 2)) as made:
        yield made


def loaded(pipeline: Pipeline) -> Recording:
    assert isinstance(pipeline.backend, Replaying)
    return pipeline.backend.loaded


def test_whole_pictures_are_those_made_step_by_step(replaying: Pipeline, pipeline: Pipeline) -> None:
    rng = np.random.default_rng(0)
    some = [None, rng.integers(-1, 11, (5, 4)), None, rng.integers(-1, 11, (5, 16))]
    for seed, tokens in ((1, None), (2, None), (3, some)):  # a first run, the capture's first run, a replay
        labels, asked = [0, 1, 2, 1, None], {"seed": seed, "tokens": tokens, "guidance_scale": [1, 2, 3, 4, 5]}
        whole, stepwise = replaying.generate(labels, **asked), pipeline.generate(labels, **asked)  # type: ignore[arg-type]
        assert np.array_equal(whole.floats, stepwise.floats)
        for ours, theirs in zip(whole.tokens, stepwise.tokens, strict=True):
            assert np.array_equal(ours, theirs)
        assert [t.graph for t in whole.timings] == ["picture"] * 3  # two, two and one picture


def test_all_is_captured_at_open_for_each_batch_size(replaying: Pipeline) -> None:
    picture = 1 + 4 * 4 + 2  # begin; noise, graph and two looks for each step; decode and its look
    at_open = [picture, 1, 4, 4, 4, 4, 2, 2] * 2  # and each by itself, decode on either buffer
    assert loaded(replaying).captured == at_open
    for _ in range(3):
        replaying.generate([0, 1, 2], seed=0)
        list(replaying.stream(0))
    assert loaded(replaying).captured == at_open


def test_steps_that_are_watched_are_those_of_a_whole_picture(replaying: Pipeline) -> None:
    streamed = [step.tokens for step in replaying.stream(0, seed=4)]
    seen: list[int] = []
    watched = replaying.generate(0, seed=4, on_step=lambda step: seen.append(step.index))
    assert seen == [0, 1, 2, 3]
    whole = replaying.generate(0, seed=4)
    assert np.array_equal(watched.floats, whole.floats)
    for tokens in (streamed, watched.tokens):
        assert all(np.array_equal(a, b) for a, b in zip(whole.tokens, tokens, strict=True))


@pytest.mark.parametrize(
    "graph, output", [("step_03", "state.code_sum.out"), ("step_01", "logits.out"), ("decode", "image.out")]
)
def test_what_is_no_number_gives_no_picture(own_bundle: Path, graph: str, output: str) -> None:
    break_output(own_bundle, graph, output)
    with Pipeline.open(own_bundle, Replaying(threads=1)) as pipeline:
        for _ in range(2):
            with pytest.raises(
                NonFiniteError, match=rf"^{output} of {graph} holds NaN or infinity for the pictures \["
            ):
                pipeline.generate([0, 1], seed=0)


def test_a_closed_pipeline_gives_back_what_the_backend_holds_once(bundle: Path) -> None:
    pipeline = Pipeline.open(bundle, Replaying(threads=1))
    stream = pipeline.stream(0)
    next(stream)
    pipeline.close()
    assert not hasattr(loaded(pipeline), "closed")  # a call still stands on a slot
    with pytest.raises(PipelineClosed):
        next(stream)
    pipeline.close()
    assert loaded(pipeline).closed == 1
