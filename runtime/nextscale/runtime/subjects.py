"""What each picture is of: a class, or a text; checked once, and made the arrays that ``begin`` takes.

:func:`nextscale.plan.conditioning.given` names those arrays. The eager model takes the same, from the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import InputError
from nextscale.plan.types import Model, Text
from nextscale.runtime.arguments import listed, whole

Floats = NDArray[np.float32]
Subject = int | str | None | Floats | tuple[Floats, int]
Encode = Callable[[Sequence[str]], Sequence[tuple[Floats, int]]]  # prompts to features (rows, width) and their lengths


@dataclass(frozen=True)
class Subjects:
    """The pictures of a call: ``names`` in words (a class's number; a prompt; '' for features), ``given`` as arrays.

    ``negatives`` is in words what they should not show, None for nothing. ``given[name]`` is (pictures, ...), as
    ``begin`` takes it.
    """

    names: tuple[int | str, ...]
    negatives: tuple[str | None, ...]
    given: dict[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def text_tokens(self) -> int:
        """The tokens of the longest text, of negative ones too; 0 where there is none."""
        return max((int(self.given[f"{n}_length"].max()) for n in ("text", "negative") if n in self.given), default=0)

    def part(self, pick: Sequence[int]) -> Subjects:
        """The pictures of those indices, in that order; an index may stand more than once."""
        given = {name: array[pick] for name, array in self.given.items()}
        return Subjects(tuple(self.names[i] for i in pick), tuple(self.negatives[i] for i in pick), given)


def make_subjects(
    model: Model,
    subjects: Any,
    negative: Any = None,
    classes: Sequence[str] = (),
    encode: Encode | None = None,
) -> Subjects:
    """One subject, or one for each picture.

    Of a class-conditional model: a class's number or name, None for no class. Of a text-conditional one: a prompt,
    which ``encode`` makes features of, or features themselves: (rows, width) float32, or these with the number of rows
    that count (a text that is a prefix has rows for its padding too). ``negative`` is what the pictures should not
    show, for all or for each of them; None where the model's own learned text stands for it. Raises
    :class:`~nextscale.plan.errors.InputError` for what the model does not take.
    """
    asked = each(subjects)
    if not asked:
        raise InputError("no labels or prompts: one makes one picture")
    if model.text is None:
        if negative is not None:
            raise InputError("a negative prompt is given, and this model is conditioned on classes: leave it out")
        numbers = tuple(_label(model, label, classes) for label in asked)
        return Subjects(numbers, (None,) * len(asked), {"labels": np.array(numbers, np.int32)})
    names = tuple(map(_in_words, asked))
    given = _text("text", model.text, asked, encode)
    if model.text.use != "cross":
        if negative is not None:
            raise InputError("a negative prompt is given, and this model has no place for one: leave it out")
        return Subjects(names, (None,) * len(asked), given)
    against: list[Any] = [None] * len(asked) if negative is None else each(negative)
    against = against * len(asked) if len(against) == 1 else against
    if len(against) != len(asked):
        raise InputError(f"negative: one prompt, or one for each of {len(asked)} pictures; found {len(against)}")
    negatives = tuple(None if value is None else _in_words(value) for value in against)
    return Subjects(names, negatives, given | _text("negative", model.text, against, encode))


def _in_words(value: Any) -> str:
    """A prompt; '' for features."""
    return value if isinstance(value, str) else ""


def each(value: Any) -> list[Any]:
    """One entry for a picture; features and their lengths are one entry."""
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return [value]
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], np.ndarray) and whole(value[1]):
        return [value]
    given = listed(value)
    return [value] if given is None else given


def _label(model: Model, label: Any, names: Sequence[str]) -> int:
    """A class number; None is the null class, which stands behind the last."""
    if label is None:
        return model.classes
    if isinstance(label, str):
        if not names:
            raise InputError(
                f"label {label!r}: this bundle has no class names; its labels are 0 to {model.classes - 1}"
            )
        if label not in names:
            raise InputError(f"label {label!r} is none of {', '.join(names)}")
        return names.index(label)
    if not whole(label) or not 0 <= label < model.classes:
        raise InputError(f"labels are 0 to {model.classes - 1}, or None for no class; found {label!r}")
    return int(label)


def _text(name: str, text: Text, asked: Sequence[Any], encode: Encode | None) -> dict[str, NDArray[Any]]:
    """Features (pictures, tokens, width) and lengths (pictures,) of prompts, features, or None (length 0)."""
    prompts = list(dict.fromkeys(value for value in asked if isinstance(value, str)))  # each encoded once
    if prompts and encode is None:
        raise InputError(
            f"prompt {prompts[0]!r:.60}: this bundle has no text encoder; give features of "
            f"(rows, {text.width}), or export the bundle with one (--text)"
        )
    encoded = dict(zip(prompts, encode(prompts), strict=True)) if encode and prompts else {}
    features = np.zeros((len(asked), text.tokens, text.width), np.float32)
    lengths = np.zeros(len(asked), np.int32)
    for i, value in enumerate(asked):
        if value is None and name == "negative":
            continue
        rows, lengths[i] = encoded[value] if isinstance(value, str) else _features(name, text, value)
        features[i, : len(rows)] = rows
    return {name: features, f"{name}_length": lengths}


def _features(name: str, text: Text, value: Any) -> tuple[Floats, int]:
    """A caller's own features, checked."""
    rows, length = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    asked = f"a prompt, or features of (1 to {text.tokens}, {text.width}) float32"
    if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f":
        raise InputError(f"{name} is {asked}; found {type(value).__name__}")
    if rows.ndim != 2 or rows.shape[1] != text.width or not 1 <= len(rows) <= text.tokens:
        raise InputError(f"{name} is {asked}; found the shape {rows.shape}")
    if text.use == "prefix" and len(rows) != text.tokens:
        raise InputError(
            f"this model reads a text whole, its padding too: give features of all {text.tokens} tokens with the "
            f"number that count, (features, length); found {len(rows)} rows"
        )
    length = len(rows) if length is None else length
    if not whole(length) or not 1 <= length <= len(rows):
        raise InputError(f"{name} has features of {len(rows)} rows, of which 1 to all count; found {length!r}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite in it
        rows = rows.astype(np.float32)
    if not np.isfinite(rows).all():
        raise InputError(f"{name} has features with NaN or infinity: take them from a text encoder that works")
    return rows, int(length)
