"""What pictures are of, made the arrays that ``begin`` takes: classes, prompts, features; and every refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.bundles import MODEL
from support.prompts import CROSS, PREFIX

from nextscale.plan.conditioning import given as inputs_of
from nextscale.plan.conditioning import longest
from nextscale.plan.errors import InputError
from nextscale.plan.types import Model
from nextscale.runtime.subjects import Floats, Subjects, make_subjects

TOKENS, WIDTH = 6, 5  # of both texts
NAMES = ("circle", "square", "star")
Features = st.integers(1, TOKENS).flatmap(
    lambda rows: arrays(np.float32, (rows, WIDTH), elements=st.floats(-9, 9, width=32))
)


class Encoder:
    """Stands for a text encoder: a prompt of n words has n rows that count, in features of all rows."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, prompts: Sequence[str]) -> list[tuple[Floats, int]]:
        self.calls.append(list(prompts))
        return [(self.features(prompt), len(prompt.split())) for prompt in prompts]

    @staticmethod
    def features(prompt: str) -> Floats:
        return np.full((TOKENS, WIDTH), len(prompt), np.float32)


def some(rows: int, value: float = 1.0, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.full((rows, WIDTH), value, dtype)


def fits(model: Model, made: Subjects) -> None:
    """Names, shapes and dtypes are those of the plan's list."""
    wanted = inputs_of(model)
    assert list(made.given) == [each.name for each in wanted]
    for each in wanted:
        array = made.given[each.name]
        assert (array.shape, array.dtype) == ((len(made), *longest(each.shape, model)), np.dtype(each.dtype)), each.name
    assert len(made.names) == len(made.negatives) == len(made)


def test_classes_are_numbers_names_or_nothing() -> None:
    made = make_subjects(MODEL, [0, "star", None, np.int64(1)], classes=NAMES)
    fits(MODEL, made)
    assert made.names == (0, 2, 3, 1)
    assert made.negatives == (None,) * 4
    assert made.given["labels"].tolist() == [0, 2, 3, 1]
    for one, label in ((2, 2), ("square", 1), (None, 3), (np.int32(1), 1)):
        assert make_subjects(MODEL, one, classes=NAMES).names == (label,)
    for many in ([0, 2], (0, 2), np.array([0, 2]), np.array([0, 2], np.uint8)):
        assert make_subjects(MODEL, many).names == (0, 2)


@given(st.lists(Features, min_size=1, max_size=5), st.data())
def test_features_are_padded_and_counted(features: list[Floats], data: st.DataObject) -> None:
    lengths = [data.draw(st.none() | st.integers(1, len(rows))) for rows in features]
    asked = [rows if n is None else (rows, n) for rows, n in zip(features, lengths, strict=True)]
    made = make_subjects(CROSS, asked)
    fits(CROSS, made)
    assert made.names == ("",) * len(features)
    for i, (rows, n) in enumerate(zip(features, lengths, strict=True)):
        np.testing.assert_array_equal(made.given["text"][i, : len(rows)], rows)
        assert not made.given["text"][i, len(rows) :].any()
        assert made.given["text_length"][i] == (len(rows) if n is None else n)


def test_a_prefix_has_rows_for_its_padding() -> None:
    made = make_subjects(PREFIX, ["a red cat", (some(TOKENS), 2), some(TOKENS)], encode=Encoder())
    fits(PREFIX, made)
    assert made.given["text_length"].tolist() == [3, 2, 6]
    assert made.negatives == (None,) * 3


@given(st.lists(st.sampled_from(["a cat", "a red cat", "cat"]), min_size=1, max_size=7))
def test_each_prompt_is_encoded_once(prompts: list[str]) -> None:
    encode = Encoder()
    made = make_subjects(CROSS, prompts, encode=encode)
    fits(CROSS, made)
    assert made.names == tuple(prompts)
    assert encode.calls == [list(dict.fromkeys(prompts))]
    for i, prompt in enumerate(prompts):
        np.testing.assert_array_equal(made.given["text"][i], Encoder.features(prompt))
        assert made.given["text_length"][i] == len(prompt.split())


@pytest.mark.parametrize(
    "one",
    ["a red cat", some(3), (some(4), 3), (some(3), np.int64(3)), [some(3)], some(3)[None], some(3, dtype=np.float16)],
    ids=["prompt", "features", "with a length", "with numpy's", "in a list", "in an array", "half precision"],
)
def test_one_subject_is_one_picture(one: Any) -> None:
    made = make_subjects(CROSS, one, encode=Encoder())
    fits(CROSS, made)
    assert len(made) == 1
    assert made.given["text_length"].tolist() == [3]


def test_prompts_and_features_may_be_mixed() -> None:
    encode = Encoder()
    made = make_subjects(
        CROSS, ["a cat", (some(4), 2), some(1)], negative=[None, "dark dark dark", some(2)], encode=encode
    )
    fits(CROSS, made)
    assert made.names == ("a cat", "", "")
    assert made.negatives == (None, "dark dark dark", "")
    assert made.given["text_length"].tolist() == [2, 2, 1]
    assert made.given["negative_length"].tolist() == [0, 3, 2]
    assert encode.calls == [["a cat"], ["dark dark dark"]]


def test_no_negative_is_a_text_of_no_length() -> None:
    """The model's own learned text stands for it."""
    made = make_subjects(CROSS, [some(2), some(3)])
    assert made.negatives == (None, None)
    assert made.given["negative_length"].tolist() == [0, 0]
    assert not made.given["negative"].any()


@pytest.mark.parametrize("negative", [some(2, 7), (some(3, 7), 2), [some(2, 7)], "no no"])
def test_one_negative_is_for_all(negative: Any) -> None:
    encode = Encoder()
    made = make_subjects(CROSS, [some(1), some(2), some(3)], negative, encode=encode)
    assert made.given["negative_length"].tolist() == [2, 2, 2]
    assert (made.given["negative"][:, :2] == made.given["negative"][:1, :2]).all()
    assert encode.calls == ([["no no"]] if isinstance(negative, str) else [])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_a_part_is_those_pictures(pick: list[int]) -> None:
    asked, against = ["a", (some(5, 3), 4), "b c", some(1)], ["x", None, some(2), None]
    made = make_subjects(CROSS, asked, against, encode=Encoder())
    part = made.part(pick)
    fits(CROSS, part)
    again = make_subjects(CROSS, [asked[i] for i in pick], [against[i] for i in pick], encode=Encoder())
    assert (part.names, part.negatives) == (again.names, again.negatives)
    for name, array in again.given.items():
        np.testing.assert_array_equal(part.given[name], array)


def test_features_are_copied() -> None:
    rows = some(3)
    made = make_subjects(CROSS, rows)
    rows[...] = 9
    assert (made.given["text"][0, :3] == 1).all()


NAN = some(2)
NAN[1, 4] = np.nan
FEATURES = r"text is a prompt, or features of \(1 to 6, 5\) float32"
REFUSED: list[tuple[str, Model, dict[str, Any], str]] = [
    ("none of a class", MODEL, {"subjects": []}, "no labels or prompts: one makes one picture"),
    ("none of a text", CROSS, {"subjects": ()}, "no labels or prompts"),
    ("no rows at all", CROSS, {"subjects": np.zeros((0, 2, WIDTH), np.float32)}, "no labels or prompts"),
    ("class too large", MODEL, {"subjects": [3]}, "labels are 0 to 2, or None for no class; found 3"),
    ("class below 0", MODEL, {"subjects": -1}, "found -1"),
    ("truth for a class", MODEL, {"subjects": [True]}, "found True"),
    ("fraction for a class", MODEL, {"subjects": 1.0}, r"found 1\.0"),
    ("features for a class", MODEL, {"subjects": some(2)}, "labels are 0 to 2, or None for no class; found array"),
    ("unknown name", MODEL, {"subjects": "hexagon", "classes": NAMES}, "'hexagon' is none of circle, square, star"),
    ("no names", MODEL, {"subjects": "star"}, "label 'star': this bundle has no class names; its labels are 0 to 2"),
    ("negative of a class", MODEL, {"subjects": 1, "negative": "dark"}, "is conditioned on classes: leave it out"),
    ("negative of a prefix", PREFIX, {"subjects": some(6), "negative": some(6)}, "has no place for one: leave it out"),
    ("nothing for a text", CROSS, {"subjects": None}, f"{FEATURES}; found NoneType"),
    ("number for a text", CROSS, {"subjects": [some(1), 3]}, f"{FEATURES}; found int"),
    ("bytes for a text", CROSS, {"subjects": b"cat"}, f"{FEATURES}; found bytes"),
    ("whole numbers", CROSS, {"subjects": some(2).astype(int)}, f"{FEATURES}; found ndarray"),
    ("a row alone", CROSS, {"subjects": [np.zeros(WIDTH, np.float32)]}, rf"{FEATURES}; found the shape \(5,\)"),
    ("too many rows", CROSS, {"subjects": some(7)}, rf"{FEATURES}; found the shape \(7, 5\)"),
    ("no rows", CROSS, {"subjects": [some(0)]}, rf"{FEATURES}; found the shape \(0, 5\)"),
    ("another width", CROSS, {"subjects": np.zeros((2, 4), np.float32)}, rf"{FEATURES}; found the shape \(2, 4\)"),
    ("prefix in part", PREFIX, {"subjects": (some(5), 5)}, "give features of all 6 tokens with .*; found 5 rows"),
    (
        "length above",
        CROSS,
        {"subjects": (some(2), 3)},
        "features of 2 rows, of which 1 to all count; found 3",
    ),
    ("length of none", CROSS, {"subjects": [(some(2), 0)]}, "of which 1 to all count; found 0"),
    ("odd length", CROSS, {"subjects": [(some(2), 1.0)]}, r"of which 1 to all count; found 1\.0"),
    ("not a number", CROSS, {"subjects": NAN}, "text has features with NaN or infinity: take them from a text encoder"),
    ("beyond float32", CROSS, {"subjects": some(2, 1e300, np.float64)}, "text has features with NaN or infinity"),
    ("no encoder", CROSS, {"subjects": "a cat"}, r"prompt 'a cat': this bundle has no text encoder; .*\(rows, 5\)"),
    (
        "negative, no encoder",
        CROSS,
        {"subjects": some(1), "negative": "dark"},
        "prompt 'dark': this bundle has no",
    ),
    ("negatives", CROSS, {"subjects": [some(1)] * 3, "negative": [None] * 2}, "one for each of 3 pictures; found 2"),
    ("odd negative", CROSS, {"subjects": some(1), "negative": 3}, r"negative is a prompt, or features .*; found int"),
    ("negative of no rows", CROSS, {"subjects": some(1), "negative": (some(1), 0)}, "negative has features of 1 rows"),
]


@pytest.mark.parametrize("model, asked, message", [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_a_model_does_not_take_is_refused(model: Model, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_subjects(model, **asked)
