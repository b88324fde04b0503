"""Bundles that lie: other weights behind a manifest whose hashes are right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support.bundles import edit_manifest

from nextscale.runtime.bundle import hash_file
from nextscale.runtime.manifest import WEIGHTS_FILE


def with_other_weights(
    bundle: Path, out: Path, name: str, change: Callable[[np.ndarray], np.ndarray], honest: bool = True
) -> Path:
    """A copy whose weight ``name`` is changed, in place of the old; ``honest`` sets the manifest's hash right."""
    shutil.copytree(bundle, out)
    path = out / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little")
    start, end = (8 + header + o for o in json.loads(content[8 : 8 + header])[name]["data_offsets"])
    values = np.frombuffer(bytes(content[start:end]), np.float32)
    content[start:end] = change(values).astype(np.float32).tobytes()
    path.write_bytes(content)
    if honest:
        edit_manifest(out, lambda data: data["files"][WEIGHTS_FILE].update(sha256=hash_file(path)))
    return out
