"""A manifest's plan: read, and found consistent, before anything counts, indexes or allocates by its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nextscale.plan import codec
from nextscale.plan.errors import NextscaleError
from nextscale.plan.types import Plan
from nextscale.plan.validate import validate
from nextscale.runtime.errors import ManifestError


def read_plan(data: Any, _: str) -> Plan:
    """The plan as it stands in the JSON; :func:`check_plan` comes with the checks of the whole manifest."""
    try:
        return codec.from_json(data)
    except NextscaleError as error:
        raise ManifestError(str(error)) from error  # it names the place from `plan` on


def check_plan(plan: Plan) -> None:
    """Refuse numbers that count nothing, and a plan that contradicts itself."""
    for path, number in _whole_numbers(plan, "plan"):
        if not 0 <= number < 2**31:
            raise ManifestError(f"{path}: {number} is not a whole number from 0 to 2**31 - 1")
    try:
        validate(plan)
    except NextscaleError as error:
        raise ManifestError(str(error)) from error


def check_classes(plan: Plan, names: Sequence[str] | None, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse another number of classes than of their names, or than the class table of ``shapes`` has rows for."""
    for name, model in plan.models:
        shape = shapes.get(f"{name}/class_emb.weight")  # a row for each class, and one for none
        if shape is not None and shape[:1] != (model.classes + 1,):
            raise ManifestError(
                f"plan.models: {name!r} has {model.classes} classes, and its class table the shape {list(shape)}"
            )
    classes = plan.models[0][1].classes
    if names is not None and len(names) != classes:
        raise ManifestError(f"classes: {len(names)} names for a model of {classes} classes")


def _whole_numbers(value: Any, path: str) -> Iterator[tuple[str, int]]:
    """Every whole number of a plan, with its place; each is a count, a length or an index."""
    if type(value) is int:
        yield path, value
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _whole_numbers(item, f"{path}[{i}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _whole_numbers(getattr(value, field.name), f"{path}.{field.name}")
