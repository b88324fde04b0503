"""The chain against the same graphs run by hand, batches, streams, forced tokens."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.bundles import break_output, tiny_plan, write_bundle
from support.by_hand import run_by_hand

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline, StepResult
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.errors import NonFiniteError
from nextscale.runtime.memory import process_memory

Open = Callable[..., Pipeline]


@pytest.fixture(scope="module", params=["pruned", "full", "smooth"])
def any_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = tiny_plan(pruned=request.param == "pruned", smooth=request.param == "smooth")
    return write_bundle(tmp_path_factory.mktemp("any") / request.param, plan)


def test_equals_the_graphs_run_by_hand(any_bundle: Path) -> None:
    labels = [2, 0, 1]
    forced = [None, np.full((3, 4), -1), np.arange(18).reshape(3, 6) % 11, None]
    forced[1][0] = [5, -1, 6, -1]
    steps, image = run_by_hand(any_bundle, labels, 7, 2.5, 0.8, 1.3, forced)
    with Pipeline.open(any_bundle, threads=1) as pipeline:
        options = {"seed": 7, "guidance_scale": 2.5, "top_p": 0.8, "temperature": 1.3, "tokens": forced}
        streamed = []
        for found, wanted in zip(pipeline.stream(labels, **options), steps, strict=True):
            np.testing.assert_array_equal(found.tokens, wanted["tokens.out"])
            np.testing.assert_array_equal(found.logits(), wanted["logits.out"])
            np.testing.assert_array_equal(found.code_sum, wanted["state.code_sum.out"])
            streamed.append(found)
        result = pipeline.generate(labels, **options)
    np.testing.assert_array_equal(result.floats, image.transpose(0, 2, 3, 1))
    for a, b in zip(result.tokens, streamed, strict=True):
        np.testing.assert_array_equal(a, b.tokens)
    np.testing.assert_array_equal(result.tokens[2], forced[2])
    assert result.tokens[1][0, 0] == 5
    assert result.tokens[1][0, 2] == 6
    assert result.floats.shape == (3, 8, 8, 3)


def test_a_second_call_sees_nothing_of_the_first(pipeline: Pipeline) -> None:
    first = pipeline.generate([0, 1, 2], seed=1)
    pipeline.generate([2, 2, 2, 2], seed=99, guidance_scale=7)
    np.testing.assert_array_equal(pipeline.generate([0, 1, 2], seed=1).floats, first.floats)
    assert not np.array_equal(pipeline.generate([0, 1, 2], seed=2).floats, first.floats)


@pytest.mark.parametrize("batch_sizes", [(1,), (2,), (3, 5), (8,)])
def test_a_picture_does_not_depend_on_its_batch(open_pipeline: Open, batch_sizes: tuple[int, ...]) -> None:
    labels = [0, 1, 2, None, 0, 1, 2]
    whole = open_pipeline(batch_sizes=(7,)).generate(labels, seed=4)
    pipeline = open_pipeline(batch_sizes=batch_sizes)
    cut = pipeline.generate(labels, seed=4)
    for a, b in zip(cut.tokens, whole.tokens, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(cut.floats, whole.floats, atol=1e-6)
    alone = pipeline.generate(labels[5], seed=4, first_image=5)
    np.testing.assert_allclose(alone.floats[0], whole.floats[5], atol=1e-6)
    assert {t.images for t in cut.timings} <= set(range(1, max(batch_sizes) + 1))
    assert sum(t.images for t in cut.timings if t.graph == "decode") == 7


def test_settings_are_per_picture(pipeline: Pipeline) -> None:
    both = pipeline.generate([1, 1], seed=3, guidance_scale=[0.0, 6.0], top_p=[1.0, 0.5], temperature=(1.0, 2.0))
    for i, (scale, top_p, temperature) in enumerate([(0.0, 1.0, 1.0), (6.0, 0.5, 2.0)]):
        one = pipeline.generate(1, seed=3, first_image=i, guidance_scale=scale, top_p=top_p, temperature=temperature)
        np.testing.assert_array_equal(one.tokens[-1][0], both.tokens[-1][i])
        assert one.image_numbers == (i,)
    assert not np.array_equal(both.tokens[-1][0], both.tokens[-1][1])


def test_forced_tokens_follow_their_pictures_through_passes(open_pipeline: Open) -> None:
    forced = [None, None, None, np.arange(5 * 16).reshape(5, 16) % 11]
    for batch_sizes in ((1,), (2,), (4,), (5,)):
        result = open_pipeline(batch_sizes=batch_sizes).generate([0] * 5, seed=1, tokens=forced)
        np.testing.assert_array_equal(result.tokens[3], forced[3])
        assert len({r.tobytes() for r in result.tokens[0]} | {r.tobytes() for r in result.tokens[1]}) > 1


def test_defaults_are_the_plans(pipeline: Pipeline) -> None:
    result = pipeline.generate("star", seed=0)
    assert (result.guidance_scale, result.top_p, result.temperature) == (((1.5,) * 4,), (0.9,), (1.0,))
    assert result.subjects == (2,)
    spelled = pipeline.generate([2], seed=0, guidance_scale=1.5, top_p=0.9, temperature=1)
    np.testing.assert_array_equal(spelled.floats, result.floats)


def test_a_seed_that_is_drawn_is_told(pipeline: Pipeline) -> None:
    drawn = pipeline.generate([0, None])
    np.testing.assert_array_equal(pipeline.generate([0, None], seed=drawn.seed).floats, drawn.floats)
    assert pipeline.generate(0).seed != drawn.seed


def test_a_stream_tells_every_step(open_pipeline: Open) -> None:
    pipeline = open_pipeline(batch_sizes=(1, 2))
    steps = list(pipeline.stream([0, 1, 2], seed=5))
    assert [s.index for s in steps] == [0, 1, 2, 3] * 2
    assert [s.grid for s in steps[:4]] == [(1, 1), (2, 2), (3, 2), (4, 4)]
    assert [(s.first_image, s.images) for s in steps[3:5]] == [(0, 2), (2, 1)]
    assert [s.last for s in steps] == [False, False, False, True] * 2
    assert all(a.elapsed <= b.elapsed for a, b in pairwise(steps))
    assert all(s.timing.seconds >= 0 for s in steps)


def test_previews_now_and_later(pipeline: Pipeline) -> None:
    """A preview changes nothing of the picture, and a step can be previewed when the stream is long over."""
    result = pipeline.generate([0, 2], seed=6)
    steps, now = [], []
    for step in pipeline.stream([0, 2], seed=6):
        now.append(step.preview())
        steps.append(step)
    np.testing.assert_array_equal(now[-1], result.images)
    for step, early in zip(steps, now, strict=True):
        np.testing.assert_array_equal(step.preview(), early)
    assert not np.array_equal(now[0], now[-1])
    assert now[0].dtype == np.uint8


def test_a_preview_of_an_earlier_step_while_the_stream_runs(pipeline: Pipeline) -> None:
    wanted = [s.preview() for s in pipeline.stream([1], seed=8)]
    stream = pipeline.stream([1], seed=8)
    first, second = next(stream), next(stream)
    np.testing.assert_array_equal(second.preview(), wanted[1])
    np.testing.assert_array_equal(first.preview(), wanted[0])  # last: it must not stay where the next step reads
    last = list(stream)[-1]
    np.testing.assert_array_equal(last.preview(), wanted[-1])


def test_a_preview_of_an_earlier_pass_while_a_later_one_runs(open_pipeline: Open) -> None:
    """Both passes of the call share its one slot."""
    pipeline = open_pipeline(batch_sizes=(1,), wait=0.1)
    wanted = [s.preview() for s in pipeline.stream([1, 2], seed=8)]
    steps = []
    for step in pipeline.stream([1, 2], seed=8):
        steps.append(step)
        for seen, preview in zip(steps, wanted, strict=False):
            np.testing.assert_array_equal(seen.preview(), preview)
    assert len(steps) == 8


def test_logits_last_until_the_next_step(pipeline: Pipeline) -> None:
    stream = pipeline.stream([0], seed=0)
    first = next(stream)
    assert first.logits().shape == (1, 1, 11)
    next(stream)
    with pytest.raises(InputError, match="logits of a step are gone with the next one"):
        first.logits()
    *_, last = stream
    with pytest.raises(InputError, match="logits of a step are gone"):
        last.logits()


def test_on_step_sees_every_step_and_its_error_frees_the_slot(open_pipeline: Open) -> None:
    pipeline, seen = open_pipeline(wait=0.2), []
    pipeline.generate([0], seed=0, on_step=lambda step: seen.append((step.index, step.preview().shape)))
    assert seen == [(i, (1, 8, 8, 3)) for i in range(4)]

    def fail(step: StepResult) -> None:
        raise ZeroDivisionError(step.index)

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            pipeline.generate([0], on_step=fail)
    pipeline.generate([0])


def test_weights_that_are_not_numbers_give_no_picture(tmp_path: Path) -> None:
    broken = write_bundle(tmp_path / "nan", weights_factor=np.nan)
    with Pipeline.open(broken, threads=1) as pipeline:
        for _ in range(2):
            with pytest.raises(NonFiniteError, match=r"logits.out of step_00 holds NaN or infinity") as caught:
                pipeline.generate([0, 1])
        assert caught.value.exit_status == 4


@pytest.mark.parametrize(
    "graph, output", [("step_03", "state.code_sum.out"), ("step_01", "logits.out"), ("decode", "image.out")]
)
def test_one_output_that_is_no_number_gives_no_picture(own_bundle: Path, graph: str, output: str) -> None:
    """Where all others are finite: nothing later in the chain would tell."""
    break_output(own_bundle, graph, output)
    message = rf"^{output} of {graph} holds NaN or infinity for the pictures \[0, 1"
    with Pipeline.open(own_bundle, threads=1) as pipeline, pytest.raises(NonFiniteError, match=message):
        pipeline.generate([0, 1], seed=0)


def test_memory_by_cause(open_pipeline: Open) -> None:
    one, two = open_pipeline(batch_sizes=(1,)).memory, open_pipeline(batch_sizes=(1, 2), slots=3).memory
    assert two.images == 2
    assert {c: 2 * b for c, b in one.slot.items()} == dict(two.slot)
    assert two.total == two.weights + 3 * sum(two.slot.values())
    assert "tapes" in str(two)
    found = process_memory()
    assert found is None or found.pss > found.anonymous > 0


def test_a_backend_made_by_the_caller(bundle: Path) -> None:
    with Pipeline.open(bundle, OnnxRuntime(threads=1, prepack=True)) as pipeline:
        assert len(pipeline.generate([0, 1])) == 2
    with pytest.raises(InputError, match="belong to the backend"):
        Pipeline.open(bundle, OnnxRuntime(), threads=2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"slots": 0}, "slots is a whole number"),
        ({"batch_sizes": ()}, "batch_sizes are whole numbers"),
        ({"batch_sizes": (0, 1)}, "batch_sizes are whole numbers"),
        ({"backend": "trt"}, "backend 'trt' is none of"),
        ({"device": "gpu"}, "found 'gpu'"),
        ({"verify": "no"}, "verify is"),
    ],
)
def test_options_that_are_none(bundle: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pipeline.open(bundle, **options)  # type: ignore[arg-type]


def test_opening_is_logged(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "nextscale.runtime"), Pipeline.open(bundle, threads=1) as pipeline:
        pipeline.generate([0])
    assert "opened" in caplog.text
    assert "step_03 of 1 pictures" in caplog.text


def test_neither_torch_nor_onnx_nor_the_exporter_is_imported(bundle: Path) -> None:
    code = (
        "import sys; from nextscale.runtime import Pipeline\n"
        f"Pipeline.open({str(bundle)!r}, threads=1).generate([0])\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'onnx') or m.startswith('nextscale.export')]\n"
        "print(bad)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_targets_are_for_those_who_run_them(bundle: Path) -> None:
    with pytest.raises(InputError, match="targets are of TensorRT and of the CPU"):
        Pipeline.open(bundle, device="cuda", targets="elsewhere")
    with pytest.raises(InputError, match="targets belong to the backend"):
        Pipeline.open(bundle, OnnxRuntime(), targets="elsewhere")
    with pytest.raises(InputError, match="targets is the path of a folder; found 3"):
        Pipeline.open(bundle, targets=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threads are of a pass on the CPU"):
        Pipeline.open(bundle, "tensorrt-rtx", threads=2)
