"""Plans as JSON, strictly: what is not known or not there is an error that names its place.

The form follows the dataclasses: an object per dataclass with every field, an array per tuple, null for None. It is
generic over frozen dataclasses of numbers, strings, tuples and such dataclasses, so other data files can share it.
"""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from nextscale.plan.errors import PlanError
from nextscale.plan.types import SCHEMA_VERSION, Plan

T = TypeVar("T")
Json = Any  # what the json module reads and writes


def to_json(plan: Plan) -> dict[str, Json]:
    """The plan as what ``json.dumps`` takes."""
    data: dict[str, Json] = encode(plan)
    return data


def from_json(data: Json) -> Plan:
    """The plan of :func:`to_json`; raises :class:`PlanError` for another schema version, or a wrong or missing key."""
    found = data.get("schema_version") if isinstance(data, dict) else None
    if found != SCHEMA_VERSION:
        raise PlanError(
            f"the plan has schema version {found!r}, this Nextscale reads {SCHEMA_VERSION}: export the bundle again"
        )
    return decode(Plan, data, "plan")


def encode(value: Any) -> Json:
    """Dataclasses to objects and tuples to arrays, all the way down."""
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def decode(kind: type[T], data: Json, path: str) -> T:
    """The value of type ``kind`` that ``data`` holds; ``path`` is how errors call its place."""
    result: T = _decode(kind, data, path)
    return result


def _decode(kind: Any, data: Json, path: str) -> Any:
    origin = get_origin(kind)
    if origin is tuple:
        return _tuple(get_args(kind), data, path)
    if origin in (Union, UnionType):
        return _optional(get_args(kind), data, path)
    if dataclasses.is_dataclass(kind):
        return _object(kind, data, path)
    if kind is float:
        return _float(data, path)
    if type(data) is not kind:  # exactly: True is not an int here
        raise _unlike(_SCALARS[kind], data, path)
    return data


def _tuple(kinds: tuple[Any, ...], data: Json, path: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise _unlike("an array", data, path)
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(data)
    if len(kinds) != len(data):
        raise _unlike(f"an array of {len(kinds)}", data, path)
    return tuple(_decode(kind, item, f"{path}[{i}]") for i, (kind, item) in enumerate(zip(kinds, data, strict=True)))


def _optional(kinds: tuple[Any, ...], data: Json, path: str) -> Any:
    (kind,) = (kind for kind in kinds if kind is not NoneType)
    return None if data is None else _decode(kind, data, path)


def _object(kind: Any, data: Json, path: str) -> Any:
    if not isinstance(data, dict):
        raise _unlike("an object", data, path)
    hints = _hints(kind)
    unknown, missing = sorted(set(data) - set(hints)), [name for name in hints if name not in data]
    if unknown:
        raise PlanError(f"{path} has the unknown key {unknown[0]!r}; known are {', '.join(hints)}")
    if missing:
        raise PlanError(f"{path} lacks the key {missing[0]!r}")
    return kind(**{name: _decode(hints[name], data[name], f"{path}.{name}") for name in hints})


def _float(data: Json, path: str) -> float:
    if type(data) not in (int, float) or not math.isfinite(data):
        raise _unlike("a finite number", data, path)
    return float(data)


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


_SCALARS = {int: "an integer", str: "a string", bool: "true or false"}


def _unlike(expected: str, data: Json, path: str) -> PlanError:
    shown = repr(data)
    return PlanError(f"{path} must be {expected}; found {shown if len(shown) <= 40 else shown[:37] + '...'}")
