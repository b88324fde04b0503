"""A checkpoint in a folder: one file, or shards with an index that says which holds what, as model hubs store them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from nextscale.export import safetensors_file
from nextscale.export.lazy import Lazy
from nextscale.plan.errors import InputError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")  # in the order in which they are preferred
AVERAGED = "ema_model.bin"  # HART's averaged weights, which upstream runs where they are there
SUFFIXES = (".safetensors", ".pth", ".bin")
SHARD_BYTES = 5_000_000_000  # the hub's own


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of a checkpoint: ``path`` itself, or those of a folder, its index first where it has one.

    Raises :class:`InputError` for what is not there, and for a folder that does not say which of its files are meant.
    """
    path = Path(path)
    if path.is_file():
        return (path,)
    if (path / AVERAGED).is_file():
        return (path / AVERAGED,)
    for index in (path / name for name in INDEXES):
        if index.is_file():
            return (index, *(path / name for name in sorted(_listed(index))))
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else []
    if len(found) > 1:
        raise InputError(f"{path} holds several checkpoints ({', '.join(p.name for p in found)}): give one of them")
    if not found:
        raise InputError(
            f"no checkpoint at {path}: give the path of a .pth or .safetensors file, or of a folder with one or with "
            "shards and their index"
        )
    return (found[0],)


def check_shard(index: Path, shard: Path, keys: Collection[str]) -> None:
    """Raises :class:`InputError` where a shard does not hold exactly what the index says."""
    wanted = _listed(index)[shard.name]
    if wrong := sorted(wanted ^ set(keys)):
        raise InputError(
            f"{shard} does not hold what {index.name} says ({len(wrong)} keys differ, {wrong[0]} for one): fetch the "
            "folder again"
        )


def _listed(index: Path) -> dict[str, set[str]]:
    """The keys of every shard that an index names; all of them are files of its folder."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str]] = {}
        for key, name in weight_map.items():
            shards.setdefault(name, set()).add(key)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is no index of shards: fetch it again") from error
    for name in shards:
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:"):
            raise InputError(f"{index} names a shard {name!r}, which is no file of its folder: fetch it again")
        if not (index.parent / name).is_file():
            raise InputError(f"{index.parent} lacks {name}, which {index.name} names: fetch it too")
    return shards


def write_folder(folder: Path, tensors: Mapping[str, Lazy], limit: int = SHARD_BYTES) -> None:
    """Writes tensors in their order into safetensors files of up to ``limit`` bytes, with an index where several.

    One tensor is in memory at a time. A failing disk is the ``OSError`` that it raises.
    """
    folder.mkdir()
    shards = list(_shards(tensors, limit))
    if len(shards) == 1:
        safetensors_file.write(folder / "model.safetensors", tensors)
        return
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        safetensors_file.write(folder / name, {key: tensors[key] for key in keys})
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / INDEXES[0]).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Lazy], limit: int) -> Iterator[list[str]]:
    keys: list[str] = []
    filled = 0
    for key, tensor in tensors.items():
        if keys and filled + tensor.nbytes > limit:
            yield keys
            keys, filled = [], 0
        keys.append(key)
        filled += tensor.nbytes
    yield keys
