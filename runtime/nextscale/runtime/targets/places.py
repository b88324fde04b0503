"""Where targets lie: beside their bundle, or in the user's cache where that cannot be written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nextscale.runtime.bundle import Bundle


def folder_name(flavor: str, target: str, precision: str) -> str:
    """``tensorrt-rtx-sm86-fp16``."""
    return f"{flavor}-{target}-{precision}"


def beside(bundle: Bundle) -> Path:
    """``engines/NAME.targets``."""
    return bundle.folder.with_name(f"{bundle.folder.name}.targets")


def writable_place(bundle: Bundle) -> Path:
    """Where a new target goes: beside the bundle, in the user's cache where nothing can be written there."""
    place = beside(bundle)
    return place if os.access(place if place.exists() else place.parent, os.W_OK | os.X_OK) else in_cache(bundle)


def in_cache(bundle: Bundle) -> Path:
    """The same in the user's cache; two bundles of one name do not meet there."""
    return user_cache() / "targets" / f"{bundle.folder.name}-{bundle.digest[:16]}"


def user_cache() -> Path:
    """This user's folder for what can be made again."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "nextscale"
