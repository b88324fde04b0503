"""Bundles that are conditioned on text: prompts through the bundle's own encoder, features, negatives, bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import break_output, text_plan, write_bundle
from support.by_hand import encode_by_hand, run_by_hand
from support.prompts import CROSS

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline, Result
from nextscale.runtime.errors import Cancelled, NonFiniteError, PipelineClosed, PipelineTimeout
from nextscale.runtime.manifest import FILE_NAME, loads
from nextscale.runtime.result import read_metadata
from nextscale.runtime.text import TextTokenizer

PROMPTS = ["a red cat", "castle", "", "a green castle"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Text that is attended to, the same without an encoder, and text that is a prefix."""
    folder = tmp_path_factory.mktemp("texts")
    return {
        "cross": write_bundle(folder / "cross", text_plan()),
        "features": write_bundle(folder / "features", text_plan(), text_encoder=False),
        "prefix": write_bundle(folder / "prefix", text_plan(prefix=True)),
    }


@pytest.fixture
def opened(bundles: dict[str, Path]) -> Iterator[Callable[..., Pipeline]]:
    made: list[Pipeline] = []

    def open_(name: str, **options: Any) -> Pipeline:
        made.append(Pipeline.open(bundles[name], **{"threads": 1, **options}))
        return made[-1]

    yield open_
    for pipeline in made:
        pipeline.close()


def tokens_of(bundle: Path) -> TextTokenizer:
    return TextTokenizer((bundle / "tokenizer.json").read_text())


def equal(first: Result, second: Result) -> None:
    np.testing.assert_array_equal(first.floats, second.floats)
    for a, b in zip(first.tokens, second.tokens, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["cross", "features", "prefix"])
def test_the_manifest_says_what_it_takes(name: str, bundles: dict[str, Path]) -> None:
    text = (bundles[name] / FILE_NAME).read_text()
    manifest = loads(text)
    assert manifest.tokenizer == (None if name == "features" else "tokenizer.json")
    assert manifest.classes is None
    assert ("text" in [graph.name for graph in manifest.graphs]) == (name != "features")
    sources = [tensor["source"] for tensor in json.loads(text)["graphs"][0 if name == "features" else 1]["inputs"]]
    assert sources == ["text", "text_length", *([] if name == "prefix" else ["negative", "negative_length"])]


@pytest.mark.parametrize("name", ["cross", "prefix"])
def test_prompts_are_the_graphs_run_by_hand(
    name: str, bundles: dict[str, Path], opened: Callable[..., Pipeline]
) -> None:
    """Two passes of the encoder, then two of the chain."""
    bundle, negative = bundles[name], "red" if name == "cross" else None
    pipeline = opened(name, batch_sizes=(1, 3))
    result = pipeline.generate(PROMPTS, negative=negative, seed=7, guidance_scale=2.5, top_p=0.8, temperature=1.3)
    ids, length = tokens_of(bundle).ids_of(PROMPTS)
    given = {"text": encode_by_hand(bundle, ids, length), "text_length": length}
    if negative is not None:
        ids, length = tokens_of(bundle).ids_of([negative] * len(PROMPTS))
        given |= {"negative": encode_by_hand(bundle, ids, length), "negative_length": length}
    steps, image = run_by_hand(bundle, given, 7, 2.5, 0.8, 1.3)
    np.testing.assert_allclose(result.floats, image.transpose(0, 2, 3, 1), rtol=0, atol=1e-6)
    for found, wanted in zip(result.tokens, steps, strict=True):
        np.testing.assert_array_equal(found, wanted["tokens.out"])
    assert (result.subjects, result.negatives) == (tuple(PROMPTS), (negative,) * 4)


def test_tokens_of_a_bitwise_model_have_an_axis_of_bits(opened: Callable[..., Pipeline]) -> None:
    pipeline = opened("cross")
    free = pipeline.generate(PROMPTS[:2], seed=1)
    assert [t.shape for t in free.tokens] == [(2, n, CROSS.bits) for n in (1, 4, 6, 16)]
    forced = [None, None, 1 - free.tokens[2], np.full((2, 16, 3), -1)]
    forced[3][0, 5] = [1, -1, 0]
    result = pipeline.generate(PROMPTS[:2], seed=1, tokens=forced)
    np.testing.assert_array_equal(result.tokens[2], forced[2])
    np.testing.assert_array_equal(result.tokens[0], free.tokens[0])
    assert result.tokens[3][0, 5, [0, 2]].tolist() == [1, 0]
    with pytest.raises(InputError, match=r"step 1 are whole numbers of shape \(2, 4, 3\); found int64 \(2, 4\)"):
        pipeline.generate(PROMPTS[:2], tokens=[None, np.zeros((2, 4), int), None, None])
    with pytest.raises(InputError, match=r"tokens of step 0 are -1 \(sample it\) to 1"):
        pipeline.generate(PROMPTS[:2], tokens=[np.full((2, 1, 3), 2), None, None, None])


@pytest.mark.parametrize("name", ["cross", "prefix"])
def test_features_stand_for_the_prompt_that_they_are_of(name: str, opened: Callable[..., Pipeline]) -> None:
    pipeline = opened(name)
    features = pipeline.encode(PROMPTS)
    whole = name == "prefix"  # padding and all
    assert [(rows.shape, rows.dtype, length) for rows, length in features] == [
        ((6 if whole else length, 5), np.float32, length) for length in (4, 2, 1, 4)
    ]
    by_prompt, by_features = (pipeline.generate(subjects, seed=3) for subjects in (PROMPTS, features))
    equal(by_prompt, by_features)
    assert by_features.subjects == ("",) * 4


def test_a_text_that_is_attended_to_is_what_counts_of_it(opened: Callable[..., Pipeline]) -> None:
    pipeline = opened("cross")
    more = [(np.pad(rows, ((0, 6 - length), (0, 0)), mode="edge"), length) for rows, length in pipeline.encode(PROMPTS)]
    equal(pipeline.generate(PROMPTS, seed=3), pipeline.generate(more, seed=3))


def test_a_text_that_is_a_prefix_is_read_with_its_padding(opened: Callable[..., Pipeline]) -> None:
    pipeline = opened("prefix")
    ((rows, length),) = pipeline.encode(["castle"])
    other = rows.copy()
    other[-1] += 1
    made = [pipeline.generate(one, seed=3).floats for one in ((rows, length), (other, length), (rows, length + 1))]
    assert not np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])
    with pytest.raises(InputError, match=r"a text whole, its padding too: give features of all 6 tokens .* 2 rows"):
        pipeline.generate(rows[:length])


def test_what_stands_behind_a_length_is_not_looked_at(opened: Callable[..., Pipeline]) -> None:
    pipeline = opened("features")
    rows = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    other = rows.copy()
    other[4:] = 7
    equal(pipeline.generate((rows, 4), seed=1), pipeline.generate((other, 4), seed=1))
    first = pipeline.generate((rows, 4), negative=(rows, 2), seed=1)
    equal(first, pipeline.generate((rows, 4), negative=(rows[:2], 2), seed=1))
    assert not np.array_equal(first.floats, pipeline.generate((rows, 4), negative=(rows, 3), seed=1).floats)


def test_a_negative_moves_the_picture_and_none_is_the_models_own(opened: Callable[..., Pipeline]) -> None:
    pipeline = opened("cross")
    # Pictures of so few bits can coincide; with this seed none do.
    made = [pipeline.generate("a cat", negative=n, seed=3).floats for n in (None, "red", "green", "", [None])]
    np.testing.assert_array_equal(made[0], made[4])
    assert all(not np.array_equal(made[i], made[j]) for i in range(4) for j in range(i))
    mixed = pipeline.generate(["a cat", "a cat"], negative=["green", None], seed=3)
    np.testing.assert_array_equal(mixed.floats[0], made[2][0])
    alone = pipeline.generate("a cat", seed=3, first_image=1)
    np.testing.assert_array_equal(mixed.floats[1], alone.floats[0])


def test_a_picture_does_not_depend_on_its_batch(opened: Callable[..., Pipeline]) -> None:
    together = opened("cross", batch_sizes=(4,)).generate(PROMPTS, negative=["red", None, "a", None], seed=4)
    pipeline = opened("cross", batch_sizes=(1, 2))
    for i, negative in enumerate(["red", None, "a", None]):
        alone = pipeline.generate(PROMPTS[i], negative=negative, seed=4, first_image=i)
        for a, b in zip(alone.tokens, together.tokens, strict=True):
            np.testing.assert_array_equal(a[0], b[i])


def test_guidance_by_scale_is_that_of_each_step(opened: Callable[..., Pipeline]) -> None:
    """A picture whose list is one number over is the picture of that number; another list is another picture."""
    pipeline = opened("cross")
    plain = pipeline.generate(["a cat"] * 2, seed=5, guidance_scale=4)
    listed = pipeline.generate(["a cat"] * 2, seed=5, guidance_scale=[[4, 4, 4, 4], [4, 4, 4, 9]])
    np.testing.assert_array_equal(plain.floats[0], listed.floats[0])
    for step in range(3):  # the last scale's guidance moves the last step alone
        np.testing.assert_array_equal(plain.tokens[step], listed.tokens[step])
    logits = [
        [s.logits() for s in pipeline.stream("a cat", seed=5, guidance_scale=[scales])]
        for scales in ([4, 4, 4, 4], [4, 4, 4, 9])
    ]
    assert [np.array_equal(a, b) for a, b in zip(*logits, strict=True)] == [True, True, True, False]
    assert listed.guidance_scale == ((4.0,) * 4, (4.0, 4.0, 4.0, 9.0))


def test_saved_pictures_say_their_prompt_and_can_be_made_again(opened: Callable[..., Pipeline], tmp_path: Path) -> None:
    pipeline = opened("cross")
    prompts, negatives = ['a "cat" ☂', "castle"], ["green", None]
    ramp = [[1.0, 2.0, 3.0, 4.5], [2.0] * 4]
    result = pipeline.generate(prompts, negative=negatives, seed=9, first_image=3, guidance_scale=ramp)
    paths = result.save(tmp_path)
    assert [path.name for path in paths] == ["seed9-00003.png", "seed9-00004.png"]
    found = [read_metadata(path) for path in paths]
    assert [f["nextscale.prompt"] for f in found] == prompts
    assert [f.get("nextscale.negative") for f in found] == negatives
    assert [f["nextscale.guidance_scale"] for f in found] == ["1.0, 2.0, 3.0, 4.5", "2.0"]
    assert not any("nextscale.label" in f for f in found)
    for i, told in enumerate(found):
        scales = [float(scale) for scale in told["nextscale.guidance_scale"].split(", ")]
        again = pipeline.generate(
            told["nextscale.prompt"],
            negative=told.get("nextscale.negative"),
            seed=int(told["nextscale.seed"]),
            first_image=int(told["nextscale.image"]),
            guidance_scale=[scales] if len(scales) > 1 else scales,
            top_p=float(told["nextscale.top_p"]),
            temperature=float(told["nextscale.temperature"]),
        )
        np.testing.assert_array_equal(again.images[0], result.images[i])


LONG = "a red cat a red cat"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("cross", {"subjects": LONG}, f"the prompt '{LONG}' has 7 tokens and this bundle reads 6: shorten it"),
    ("cross", {"subjects": "cat", "negative": LONG}, "has 7 tokens and this bundle reads 6"),
    ("cross", {"subjects": 3}, "text is a prompt, or features of"),
    ("features", {"subjects": "a cat"}, "prompt 'a cat': this bundle has no text encoder; give features"),
    ("prefix", {"subjects": "a cat", "negative": "red"}, "this model has no place for one: leave it out"),
    ("cross", {"subjects": "a cat", "guidance_scale": [[1.0, 2.0]]}, "by scale has 4 numbers"),
]


@pytest.mark.parametrize("name, asked, message", REFUSED, ids=[f"{r[0]} {i}" for i, r in enumerate(REFUSED)])
def test_what_is_wrong_is_named(
    name: str, asked: dict[str, Any], message: str, opened: Callable[..., Pipeline]
) -> None:
    pipeline = opened(name)
    for call in (pipeline.generate, pipeline.stream):
        with pytest.raises(InputError, match=message):
            call(**asked)


def test_a_long_prompt_is_cut_where_the_caller_says_so(opened: Callable[..., Pipeline]) -> None:
    pipeline = opened("cross")
    with pytest.raises(InputError, match="has 7 tokens"):
        pipeline.encode([LONG])
    ((rows, length),) = pipeline.encode([LONG], truncate=True)
    ((wanted, _),) = pipeline.encode(["a red cat a red"])
    assert length == 6
    np.testing.assert_array_equal(rows, wanted)


def test_encoding_says_what_it_cannot_do(opened: Callable[..., Pipeline]) -> None:
    with pytest.raises(InputError, match="holds no text encoder, so it cannot read prompts"):
        opened("features").encode(["a cat"])
    pipeline = opened("cross")
    with pytest.raises(InputError, match="prompts are a list of texts; found 'a cat'"):
        pipeline.encode("a cat")
    assert pipeline.encode([]) == []
    with pytest.raises(Cancelled):
        pipeline.encode(["a cat"], cancel=lambda: True)
    with pytest.raises(PipelineTimeout):
        pipeline.generate("a cat", timeout=-1)
    pipeline.close()
    for call in (pipeline.encode, pipeline.generate):
        with pytest.raises(PipelineClosed):
            call(["a cat"])


def test_an_encoder_that_gives_no_numbers_is_named(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "broken", text_plan())
    break_output(bundle, "text", "text.out")
    with Pipeline.open(bundle, threads=1) as pipeline:
        with pytest.raises(NonFiniteError, match=r"text\.out of text holds NaN"):
            pipeline.generate("a cat")
        assert pipeline.generate(np.ones((3, 5), np.float32)).floats.shape == (1, 8, 8, 3)  # features need none


def test_memory_of_texts_has_a_cause_of_its_own(opened: Callable[..., Pipeline]) -> None:
    slot = opened("cross", batch_sizes=(2,)).memory.slot
    features = 2 * 6 * 5 * 4  # pictures, rows, width, bytes
    assert 3 * features <= slot["texts"] < 3 * features + 3 * 256  # the encoder's, the prompts', the negatives'
