"""Packed targets of bundles, for the processor that the tests run on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextscale.runtime.backends.packed.build import Report, build_packed
from nextscale.runtime.backends.packed.target import FILE_NAME
from nextscale.runtime.bundle import open_bundle


def pack(bundle: Path, place: Path | None = None, said: list[str] | None = None, **options: Any) -> Report:
    """Packs beside the bundle, or in ``place``; ``said`` collects what is said."""
    say: Callable[[str], None] = (lambda sentence: None) if said is None else said.append
    told = options.pop("told", lambda *what: None)
    return build_packed(
        open_bundle(bundle), place or bundle.with_name(f"{bundle.name}.targets"), told, say=say, **options
    )


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    """A target's manifest, changed."""
    data = json.loads((folder / FILE_NAME).read_text())
    change(data)
    (folder / FILE_NAME).write_text(json.dumps(data))
