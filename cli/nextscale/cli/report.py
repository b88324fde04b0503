"""What is said of a bundle that was just published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nextscale.cli.output import print_json, say, size_text


def print_bundle(folder: Path, seconds: float, json: bool) -> None:
    """Where the bundle is, how large, and what was verified how."""
    from nextscale.runtime.bundle import open_bundle

    opened = open_bundle(folder, verify="size")
    manifest = opened.manifest
    size = sum(file.size for file in manifest.files.values())
    if json:
        checks: list[dict[str, Any]] = [
            {"graph": v.graph, "how": v.how, "max_error": v.max_error, "tolerance": v.tolerance}
            for v in manifest.verified
        ]
        data = {"bundle": str(folder), "sha256": opened.digest, "bytes": size, "graphs": len(manifest.graphs)}
        print_json({**data, "seconds": seconds, "verified": checks})
        return
    recipe = f"{manifest.recipe.name} version {manifest.recipe.version}"
    say(f"{folder}: {recipe}, {manifest.precision}, {len(manifest.graphs)} graphs, {size_text(size)}, {seconds:.0f} s")
    for how in dict.fromkeys(v.how for v in manifest.verified):
        checked = [v for v in manifest.verified if v.how == how]
        worst = max(checked, key=lambda v: v.max_error or 0.0)
        if worst.max_error is None:
            say(f"not verified: {len(checked)} graphs, {how}")
        else:
            error = f"largest difference {worst.max_error:.2g} ({worst.graph})"
            say(f"verified against eager PyTorch: {len(checked)} graphs, {how}, {error}")
    texts = '--prompt "a red fox in the snow"' if manifest.tokenizer else "--features FILE.npy"
    of = "--labels 0,1" if manifest.plan.model().text is None else texts
    say(f"next: nextscale generate {folder} {of} --seed 0 -o out/")
