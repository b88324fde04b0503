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
from nextscale.runtime.arguments import listed, whole
from nextscale.runtime.manifest import Manifest
from nextscale.runtime.subjects import Encode, Subject, Subjects, each, make_subjects

Setting = float | Sequence[float]
Guidance = float | Sequence[float] | Sequence[Sequence[float]]
MOST_IMAGES = 1024  # in a pass; far above what makes it faster
RANGES = {"guidance_scale": (-1e6, 1e6), "top_p": (0.0, 1.0), "temperature": (1e-6, 1e6)}  # above, and up to


@dataclass(frozen=True)
class Request:
    """Pictures to make, one entry each; ``guidance_scale[picture][scale]``, for every scale of the schedule.

    ``tokens`` are the forced tokens by step order, (pictures, n, *draws), -1 sampled.
    """

    subjects: Subjects
    seed: int
    images: tuple[int, ...]
    guidance_scale: tuple[tuple[float, ...], ...]
    top_p: tuple[float, ...]
    temperature: tuple[float, ...]
    tokens: dict[int, NDArray[np.int32]]

    def __len__(self) -> int:
        return len(self.subjects)

    def part(self, indices: Sequence[int]) -> Request:
        """The pictures of those indices, in that order; an index may stand more than once."""
        pick = list(indices)
        return Request(
            self.subjects.part(pick),
            self.seed,
            tuple(self.images[i] for i in pick),
            tuple(self.guidance_scale[i] for i in pick),
            tuple(self.top_p[i] for i in pick),
            tuple(self.temperature[i] for i in pick),
            {order: forced[pick] for order, forced in self.tokens.items()},
        )

    def guidance(self, plan: Plan, step: Step) -> NDArray[np.float32]:
        """The weight of every guidance row, (pictures, guidance rows): ``constant + slope * guidance_scale``."""
        return guidance_rows(plan, step, self.guidance_scale)


def guidance_rows(plan: Plan, step: Step, scales: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """The weight of every guidance row at a step, (pictures, rows), of each picture's guidance scale by scale."""
    weights = plan.guidance.weights[step.scale]
    return np.array([[c + s * by_scale[step.scale] for c, s in weights] for by_scale in scales], np.float32)


def make_request(
    manifest: Manifest,
    subjects: Subject | Sequence[Subject],
    seed: int | None = None,
    first_image: int = 0,
    guidance_scale: Guidance | None = None,
    top_p: Setting | None = None,
    temperature: Setting | None = None,
    tokens: Sequence[ArrayLike | None] | None = None,
    negative: Subject | Sequence[Subject] = None,
    encode: Encode | None = None,
) -> Request:
    """Check everything that a caller gives against the bundle; raises :class:`~nextscale.plan.errors.InputError`.

    A setting is one number, or one for each picture; None is the plan's default. Guidance may also be, for each
    picture, one number for every scale of the schedule.
    """
    plan, count = manifest.plan, len(each(subjects))
    seed = secrets.randbits(32) if seed is None else check_word("seed", seed)
    first = check_word("first_image", first_image)
    scales = by_scale(plan, _default(plan, "guidance_scale", guidance_scale), count)
    shares, temperatures = (_setting(plan, *of, count) for of in (("top_p", top_p), ("temperature", temperature)))
    forced = check_tokens(plan, tokens, count)
    # Last, for prompts are encoded here.
    made = make_subjects(plan.models[0][1], subjects, negative, manifest.classes or (), encode)
    return Request(made, seed, tuple(range(first, first + count)), scales, shares, temperatures, forced)


def passes(count: int, batch_sizes: Sequence[int]) -> Iterator[tuple[range, int]]:
    """Cut ``count`` pictures into passes: which pictures, and the batch size that holds them.

    As many of the largest size as fit, then the smallest that holds the rest, filled up.
    """
    start, largest = 0, max(batch_sizes)
    while start < count:
        rest = min(count - start, largest)
        yield range(start, start + rest), min(size for size in batch_sizes if size >= rest)
        start += rest


def by_scale(plan: Plan, value: Any, count: int) -> tuple[tuple[float, ...], ...]:
    """Guidance for each picture at every scale of the schedule, checked.

    One number, one for each picture, or for each picture a list of one for every scale.
    """
    given, scales = listed(value), len(plan.schedule)
    values = [value] * count if given is None else given
    if len(values) != count:
        raise InputError(
            f"guidance_scale: one number, one for each of {count} pictures, or for each of them a list of one for "
            f"every scale; found {len(values)}"
        )
    rows = []
    for one in values:
        row = listed(one)
        if row is not None and len(row) != scales:
            raise InputError(f"guidance_scale by scale has {scales} numbers, one for every scale; found {len(row)}")
        rows.append(tuple(check_number("guidance_scale", v) for v in ([one] * scales if row is None else row)))
    return tuple(rows)


def _default(plan: Plan, name: str, value: Any) -> Any:
    """What a caller gave, or the plan's default."""
    if value is not None:
        return value
    defaults = dict(plan.defaults)
    if name not in defaults:
        raise InputError(f"{name}: this bundle has no default for it; give a number")
    return defaults[name]


def _setting(plan: Plan, name: str, value: Setting | None, count: int) -> tuple[float, ...]:
    """One number for each picture."""
    value = _default(plan, name, value)
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
    """Forced tokens by step order, (pictures, tokens of the step, *draws); raises where they do not fit the plan."""
    if tokens is None:
        return {}
    entries = listed(tokens)
    if entries is None or len(entries) != len(plan.steps):
        found = type(tokens).__name__ if entries is None else len(entries)
        raise InputError(f"tokens: one entry (an array or None) for each of {len(plan.steps)} steps; found {found}")
    model = plan.models[0][1]
    vocabulary = model.vocabulary
    forced = {}
    for step, given in zip(plan.steps, entries, strict=True):
        if given is None:
            continue
        shape = (count, step.tokens_out, *model.draws)
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
