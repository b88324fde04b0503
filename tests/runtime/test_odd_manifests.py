"""Odd values in a manifest: whatever stands there, a bundle is refused in our words, or it opens and runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.bundles import edit_manifest, tiny_plan, write_bundle

from nextscale.plan.errors import NextscaleError
from nextscale.runtime import Pipeline
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import ManifestError
from nextscale.runtime.manifest import FILE_NAME, WEIGHTS_FILE

Path_ = tuple[Any, ...]
FOR_NUMBERS = (-1, 99, 2**31 - 1, 2**40)
FOR_OTHERS = ([], None, -1, 2**40, 0.5, "")

NAMED: list[tuple[Path_, Any, str]] = [
    (("plan", "schedule"), [], "contradicts itself: guidance has weights for 4 scales, the schedule 0"),
    (("plan", "guidance", "weights"), [], "guidance has weights for 0 scales"),
    (("plan", "steps", 1, "scale"), 99, "step 1: scale 99 is not in the schedule of 4"),
    (("plan", "steps", 1, "scale"), -1, r"plan\.steps\[1\]\.scale: -1 is not a whole number from 0"),
    (("plan", "models", 0, 1, "classes"), 1000, r"'var' has 1000 classes, and its class table the shape \[4, 8\]"),
    (("plan", "models", 0, 1, "depth"), 2**31 - 1, "depth: 2147483647 layers, and no graph has so many outputs"),
    (("plan", "tokenizer", "channels"), 2**40, r"plan\.tokenizer\.channels: 1099511627776 is not a whole number"),
    (("name",), "\ud800", "not valid JSON: .*surrogates not allowed"),
    (("plan", "defaults", 0, 1), 10**400, "not valid JSON: 10+... is no number of 64 bits"),
]


def at(data: Any, path: Path_) -> Any:
    for key in path:
        data = data[key]
    return data


def put(data: Any, path: Path_, value: Any) -> Any:
    """Replace the value at ``path``; returns what stood there."""
    holder = at(data, path[:-1])
    was, holder[path[-1]] = holder[path[-1]], value
    return was


@pytest.mark.parametrize("path, value, message", NAMED, ids=[f"{n[0][-1]} {str(n[1])[:12]}" for n in NAMED])
def test_what_a_plan_cannot_say_is_named_at_opening(own_bundle: Path, path: Path_, value: Any, message: str) -> None:
    edit_manifest(own_bundle, lambda data: put(data, path, value))
    with pytest.raises(ManifestError, match=message):
        open_bundle(own_bundle)


def test_weights_that_are_not_listed_are_not_trusted(own_bundle: Path) -> None:
    def unlist(data: Any) -> None:
        data["weights"] = {}
        del data["files"][WEIGHTS_FILE]

    edit_manifest(own_bundle, unlist)
    with pytest.raises(ManifestError, match=r"files: 'weights\.safetensors' is not listed under files"):
        open_bundle(own_bundle)


def test_any_value_anywhere(tmp_path: Path) -> None:
    """Every kind of place in the JSON; where a number stands, the first and the last of the kind. Others take turns."""
    folder = write_bundle(tmp_path / "tiny", tiny_plan())
    good = json.loads((folder / FILE_NAME).read_text())
    kinds: dict[Path_, list[Path_]] = {}
    for path in places(good):
        kinds.setdefault(tuple("*" if isinstance(key, int) else key for key in path), []).append(path)
    tried = opened = refused = 0
    for turn, paths in enumerate(kinds.values()):
        number = type(at(good, paths[0])) is int
        for path in dict.fromkeys((paths[0], paths[-1])) if number else paths[:1]:
            for value in FOR_NUMBERS if number else FOR_OTHERS[turn % 2 :: 2]:
                tried += 1
                was = put(good, path, value)
                (folder / FILE_NAME).write_text(json.dumps(good))
                put(good, path, was)
                try:
                    makes_a_picture(folder)
                    opened += 1
                except NextscaleError as error:
                    refused += "\n" not in str(error)
                except Exception as error:
                    raise AssertionError(f"{'.'.join(map(str, path))} = {value!r}") from error
    assert opened > 20
    assert opened + refused == tried > 700


def makes_a_picture(folder: Path) -> None:
    with Pipeline.open(folder, threads=1, verify="size", batch_sizes=(1,)) as pipeline:
        pipeline.generate([None], seed=0).save(folder.parent / "out")


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of everything below ``value``."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield (*path, key)
        yield from places(item, (*path, key))
