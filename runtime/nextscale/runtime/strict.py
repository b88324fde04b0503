"""Strict JSON for frozen dataclasses: every key known, every value of its type, errors that name the place.

A reader of data from outside: it repairs nothing. Duplicate keys, unknown keys, missing keys, NaN, and numbers in
the wrong type are :class:`~nextscale.runtime.errors.ManifestError` with a path such as ``graphs[3].inputs[0].shape``.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from nextscale.runtime.errors import ManifestError

T = TypeVar("T")
Hook = Callable[[Any, str], Any]


def parse(text: str | bytes) -> Any:
    """JSON text as plain Python data; refuses duplicate keys, NaN and infinities, and half a character."""
    try:
        data = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_int)
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()  # finds 1e999 and lone surrogates
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"not valid JSON: {error}") from error
    return data


def read(cls: type[T], data: Any, path: str = "", hooks: Mapping[Any, Hook] | None = None) -> T:
    """A dataclass from plain data. ``hooks`` replace the reading of a type: ``hooks[type](data, path)``."""
    return typing.cast(T, _read(cls, data, path, hooks or {}))


def write(value: Any, hooks: Mapping[Any, Callable[[Any], Any]] | None = None) -> Any:
    """Plain data from a dataclass, the inverse of :func:`read`."""
    if hooks and type(value) in hooks:
        return hooks[type(value)](value)
    if dataclasses.is_dataclass(value):
        return {f.name: write(getattr(value, f.name), hooks) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: write(item, hooks) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [write(item, hooks) for item in value]
    return value


def _read(kind: Any, data: Any, path: str, hooks: Mapping[Any, Hook]) -> Any:
    if kind in hooks:
        return hooks[kind](data, path)
    if kind is Any:
        return data
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, data, path, hooks)
    if origin is tuple:
        items = _expect(list, data, path)
        return tuple(_read(arguments[0], item, f"{path}[{i}]", hooks) for i, item in enumerate(items))
    if origin in (dict, Mapping):
        entries = _expect(dict, data, path)
        return {key: _read(arguments[1], item, _join(path, key), hooks) for key, item in entries.items()}
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, path, hooks)
    if kind is float and type(data) is int:
        return float(data)
    return _expect(kind, data, path)


def _read_union(arguments: tuple[Any, ...], data: Any, path: str, hooks: Mapping[Any, Hook]) -> Any:
    if data is None and type(None) in arguments:
        return None
    kinds = [a for a in arguments if a is not type(None)]
    if len(kinds) == 1:
        return _read(kinds[0], data, path, hooks)
    for kind in kinds:  # plain types only: int | str
        if type(data) is kind:
            return data
    raise ManifestError(f"{path}: expected {' or '.join(k.__name__ for k in kinds)}, found {_show(data)}")


def _read_dataclass(kind: Any, data: Any, path: str, hooks: Mapping[Any, Hook]) -> Any:
    entries = _expect(dict, data, path)
    hints = _hints(kind)
    for key in entries:
        if key not in hints:
            raise ManifestError(f"{_join(path, key)}: unknown key; known here: {', '.join(hints)}")
    for name in hints:
        if name not in entries:
            raise ManifestError(f"{_join(path, name)}: this key is missing")
    return kind(**{name: _read(hints[name], entries[name], _join(path, name), hooks) for name in hints})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _expect(kind: type[T], data: Any, path: str) -> T:
    if type(data) is not kind:
        raise ManifestError(f"{path or 'the file'}: expected {_NAMES.get(kind, kind.__name__)}, found {_show(data)}")
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return result


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _int(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"{text[:19]}... is no number of 64 bits")
    return int(text)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _show(data: Any) -> str:
    text = json.dumps(data, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


_NAMES: dict[type, str] = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number"}
