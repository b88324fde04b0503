"""What tensors do not tell: the ``config.json`` beside a checkpoint, every entry optional and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nextscale.plan.errors import InputError
from nextscale.plan.types import Grid, Model, Tokenizer

FILE_NAME = "config.json"
NORM_GROUPS = 32  # of the published tokenizer


@dataclass(frozen=True)
class Config:
    """``schedule`` from ``patch_nums``, ``norm_groups`` from the entry ``vae``; others by their own names.

    Entries that are not read here are whatever their writer wants to say.
    """

    path: Path
    schedule: tuple[Grid, ...] | None = None
    heads: int | None = None
    norm_groups: int = NORM_GROUPS
    class_names: tuple[str, ...] = ()
    licence: str | None = None


def config_beside(checkpoint: Path) -> Config:
    """The ``config.json`` beside a checkpoint's file, or in its folder, or one that says nothing.

    Raises :class:`InputError` if it is broken.
    """
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / FILE_NAME
    if not path.is_file():
        return Config(path)
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): mend it or take it away") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path} does not hold a JSON object: mend it or take it away")
    vae = loaded.get("vae", {})
    if not isinstance(vae, dict):
        raise _wrong(path, "vae", vae, "an object")
    return Config(
        path,
        None if loaded.get("patch_nums") is None else read_schedule(path, loaded["patch_nums"]),
        _count(path, "heads", loaded.get("heads")),
        _count(path, "norm_groups", vae.get("norm_groups")) or NORM_GROUPS,
        _names(path, loaded.get("class_names")),
        _text(path, "licence", loaded.get("licence")),
    )


def entries_of(model: Model, tokenizer: Tokenizer, schedule: tuple[Grid, ...]) -> dict[str, Any]:
    """What a ``config.json`` must say of a checkpoint that holds all of training's buffers; empty where that is all."""
    entries: dict[str, Any] = {}
    if any(h != w for h, w in schedule):  # lvl_1L tells how many tokens a scale has, not their shape
        entries["patch_nums"] = schedule
    if not model.qk_norm and model.heads != model.width // 64:
        entries["heads"] = model.heads
    if tokenizer.norm_groups != NORM_GROUPS:
        entries["vae"] = {"norm_groups": tokenizer.norm_groups}
    return entries


def read_schedule(path: Path, sides: Any) -> tuple[Grid, ...]:
    """The entry ``patch_nums`` of the file at ``path``."""
    grids = tuple((s, s) if _whole(s) else s for s in sides) if isinstance(sides, list) else ()
    if not grids or not all(isinstance(g, (list, tuple)) and len(g) == 2 and all(map(_whole, g)) for g in grids):
        raise _wrong(path, "patch_nums", sides, "a list of sides or [height, width] pairs, whole numbers above 0")
    return tuple((h, w) for h, w in grids)


def _count(path: Path, name: str, value: Any) -> int | None:
    if value is not None and not _whole(value):
        raise _wrong(path, name, value, "a whole number above 0")
    return None if value is None else int(value)


def _names(path: Path, value: Any) -> tuple[str, ...]:
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise _wrong(path, "class_names", value, "a list of names")
    return tuple(value or ())


def _text(path: Path, name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _wrong(path, name, value, "a text")
    return value


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _wrong(path: Path, name: str, value: Any, asked: str) -> InputError:
    return InputError(f"{path} has {name} {value!r:.80}: it should be {asked}")
