"""What a caller asks for, checked once and spread over pictures, and how it is cut into passes."""

from __future__ import annotations

import numbers
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nextscale.plan.errors import InputError
from nextscale.plan.types import Plan, Step
from nextscale.runtime.manifest import Manifest

Label = int | str | None
Setting = float | Sequence[float]
MOST_IMAGES = 1024  # in a pass; far above what makes it faster
RANGES = {"guidance_scale": (-1e6, 1e6), "top_p": (0.0, 1.0), "temperature": (1e-6, 1e6)}  # above, and up to


@dataclass(frozen=True)
class Request:
    """Pictures to make, one entry each; ``tokens`` are the forced tokens by step order, (pictures, n), -1 sampled."""

    labels: tuple[int, ...]
    seed: int
    images: tuple[int, ...]
    guidance_scale: tuple[float, ...]
    top_p: tuple[float, ...]
    temperature: tuple[float, ...]
    tokens: dict[int, NDArray[np.int32]]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, indices: Sequence[int]) -> Request:
        """The pictures of those indices, in that order; an index may stand more than once."""
        pick = list(indices)
        return Request(
            tuple(self.labels[i] for i in pick),
            self.seed,
            tuple(self.images[i] for i in pick),
            tuple(self.guidance_scale[i] for i in pick),
            tuple(self.top_p[i] for i in pick),
            tuple(self.temperature[i] for i in pick),
            {order: forced[pick] for order, forced in self.tokens.items()},
        )

    def guidance(self, plan: Plan, step: Step) -> NDArray[np.float32]:
        """The weight of every guidance row, (pictures, guidance rows): ``constant + slope * guidance_scale``."""
        weights = plan.guidance.weights[step.scale]
        return np.array([[c + s * scale for c, s in weights] for scale in self.guidance_scale], np.float32)


def make_request(
    manifest: Manifest,
    labels: Label | Sequence[Label],
    seed: int | None = None,
    first_image: int = 0,
    guidance_scale: Setting | None = None,
    top_p: Setting | None = None,
    temperature: Setting | None = None,
    tokens: Sequence[ArrayLike | None] | None = None,
) -> Request:
    """Check everything that a caller gives against the bundle; raises :class:`~nextscale.plan.errors.InputError`.

    A setting is one number, or one for each picture; None is the plan's default.
    """
    given = listed(labels)
    given = [labels] if given is None else given
    if not given:
        raise InputError("no labels: one label makes one picture")
    count = len(given)
    seed = secrets.randbits(32) if seed is None else check_word("seed", seed)
    first = check_word("first_image", first_image)
    return Request(
        labels=tuple(_label(manifest, label) for label in given),
        seed=seed,
        images=tuple(range(first, first + count)),
        guidance_scale=_setting(manifest.plan, "guidance_scale", guidance_scale, count),
        top_p=_setting(manifest.plan, "top_p", top_p, count),
        temperature=_setting(manifest.plan, "temperature", temperature, count),
        tokens=check_tokens(manifest.plan, tokens, count),
    )


def passes(count: int, batch_sizes: Sequence[int]) -> Iterator[tuple[range, int]]:
    """Cut ``count`` pictures into passes: which pictures, and the batch size that holds them.

    As many of the largest size as fit, then the smallest that holds the rest, filled up.
    """
    start, largest = 0, max(batch_sizes)
    while start < count:
        rest = min(count - start, largest)
        yield range(start, start + rest), min(size for size in batch_sizes if size >= rest)
        start += rest


def _label(manifest: Manifest, label: Any) -> int:
    """A class number; None is the null class, which stands behind the last."""
    classes = manifest.plan.models[0][1].classes
    if label is None:
        return classes
    if isinstance(label, str):
        if manifest.classes is None:
            raise InputError(f"label {label!r}: this bundle has no class names; its labels are 0 to {classes - 1}")
        if label not in manifest.classes:
            raise InputError(f"label {label!r} is none of {', '.join(manifest.classes)}")
        return manifest.classes.index(label)
    if not whole(label) or not 0 <= label < classes:
        raise InputError(f"labels are 0 to {classes - 1}, or None for no class; found {label!r}")
    return int(label)


def _setting(plan: Plan, name: str, value: Setting | None, count: int) -> tuple[float, ...]:
    """One number for each picture."""
    if value is None:
        defaults = dict(plan.defaults)
        if name not in defaults:
            raise InputError(f"{name}: this bundle has no default for it; give a number")
        value = defaults[name]
    given = listed(value)
    values = [value] * count if given is None else given
    if len(values) != count:
        raise InputError(f"{name}: one number, or one for each of {count} pictures; found {len(values)}")
    return tuple(check_number(name, v) for v in values)


def check_number(name: str, value: Any) -> float:
    """A setting in its range, so finite in float32 too; raises :class:`~nextscale.plan.errors.InputError`."""
    low, high = RANGES[name]
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not low < value <= high:  # NaN is in no range
        raise InputError(f"{name} is a number above {low:g} and up to {high:g}; found {value!r}")
    return float(value)


def check_tokens(plan: Plan, tokens: Sequence[ArrayLike | None] | None, count: int) -> dict[int, NDArray[np.int32]]:
    """Forced tokens by step order, each (pictures, tokens of the step); raises where they do not fit the plan."""
    if tokens is None:
        return {}
    entries = listed(tokens)
    if entries is None or len(entries) != len(plan.steps):
        found = type(tokens).__name__ if entries is None else len(entries)
        raise InputError(f"tokens: one entry (an array or None) for each of {len(plan.steps)} steps; found {found}")
    vocabulary = plan.models[0][1].vocabulary
    forced = {}
    for step, given in zip(plan.steps, entries, strict=True):
        if given is None:
            continue
        shape = (count, step.tokens_out)
        try:
            array = np.asarray(given)
        except (ValueError, TypeError) as error:  # ragged, or on a device
            raise InputError(f"tokens of step {step.order} are no array of shape {shape}: {error}") from error
        if array.shape != shape or array.dtype.kind not in "iu":
            raise InputError(
                f"tokens of step {step.order} are whole numbers of shape {shape}; found {array.dtype} {array.shape}"
            )
        if array.min() < -1 or array.max() >= vocabulary:
            raise InputError(f"tokens of step {step.order} are -1 (sample it) to {vocabulary - 1}")
        forced[step.order] = array.astype(np.int32)
    return forced


def check_word(name: str, value: Any) -> int:
    """A whole number that the noise counter holds; raises :class:`~nextscale.plan.errors.InputError`."""
    if not whole(value) or not 0 <= value < 2**63:
        raise InputError(f"{name} is a whole number from 0 to 2**63 - 1; found {value!r}")
    return int(value)


def check_batch_sizes(sizes: Any) -> tuple[int, ...]:
    """The sizes that passes may have, ascending, each once; raises :class:`~nextscale.plan.errors.InputError`."""
    given = listed(sizes)
    if not given or not all(whole(size) and 1 <= size <= MOST_IMAGES for size in given):
        raise InputError(
            f"batch_sizes are whole numbers from 1 to {MOST_IMAGES}, at least one of them; found {sizes!r}"
        )
    return tuple(sorted({int(size) for size in given}))


def listed(value: Any) -> list[Any] | None:
    """The items of a sequence or an array; None for what is one value: a number, text, an array without axes."""
    several = value.ndim > 0 if isinstance(value, np.ndarray) else isinstance(value, Sequence)
    return list(value) if several and not isinstance(value, (str, bytes, bytearray)) else None


def whole(value: Any) -> bool:
    """Whether it is a whole number by its type."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
