"""Targets of small bundles, built for real by TensorRT-RTX."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nextscale.runtime.backends.tensorrt.build import Report, build_target
from nextscale.runtime.backends.tensorrt.library import load
from nextscale.runtime.backends.tensorrt.wishes import Wishes, settings_for
from nextscale.runtime.bundle import hash_file, open_bundle
from nextscale.runtime.targets.manifest import FILE_NAME, Settings

NAME = "tensorrt-rtx-sm86-fp32"


def settings_of(bundle: Path, target: str = "sm86", **wishes: Any) -> Settings:
    """What a target of that bundle would be."""
    return settings_for(open_bundle(bundle, verify="size"), load("tensorrt-rtx"), target, Wishes(**wishes))


def build(
    bundle: Path,
    place: Path,
    settings: Settings | None = None,
    said: list[str] | None = None,
    told: Callable[[str, int, int, str], None] = lambda stage, done, total, what: None,
    force: bool = False,
    **wishes: Any,
) -> Report:
    """Builds in ``place``; ``said`` collects what is said."""
    say = (lambda sentence: None) if said is None else said.append
    opened = open_bundle(bundle, verify="size")
    return build_target(opened, settings or settings_of(bundle, **wishes), place, told, force, say)


def edit_target(folder: Path, edit: Callable[[Any], Any]) -> None:
    """Change the JSON of a target's manifest in place."""
    path = folder / FILE_NAME
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def change_graph(bundle: Path, graph: str) -> str:
    """Another graph of the same meaning, listed in the manifest as it is; the new hash."""
    import onnx
    from support.bundles import edit_manifest

    path = bundle / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    model.producer_name = "another"
    onnx.save(model, path)
    file = {"sha256": hash_file(path), "size": path.stat().st_size}
    edit_manifest(bundle, lambda data: data["files"][path.name].update(file))
    return str(file["sha256"])


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_option(settings: Settings, name: str, value: str) -> Settings:
    """The same settings but for one option of the builder."""
    return replace(settings, options={**settings.options, name: value})
