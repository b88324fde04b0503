"""A drawn checkpoint to be changed: its two states, and a folder to write what becomes of them into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.export.checkpoint import Checkpoint, load_checkpoint
from nextscale.export.state_dict import read_state

PARTS = ("var", "vae")


class Files:
    """``states`` of the transformer and the tokenizer, and the ``paths`` that :meth:`load` reads."""

    def __init__(self, folder: Path, drawn: tuple[Path, Path]) -> None:
        self.folder = folder
        self.paths = dict(zip(PARTS, drawn, strict=True))
        self.states: dict[str, dict[str, Tensor]] = {part: read_state(path, part) for part, path in self.paths.items()}

    def write(self, part: str, content: Any = None) -> Path:
        """Saves the state of a part, or another object in its place."""
        torch.save(self.states[part] if content is None else content, self._fresh(part, ".pth"))
        return self.paths[part]

    def raw(self, part: str, content: bytes, suffix: str = ".pth") -> Path:
        """Writes bytes in a part's place."""
        self._fresh(part, suffix).write_bytes(content)
        return self.paths[part]

    def config(self, **entries: Any) -> None:
        """A config.json beside the transformer, which is written into the folder for it."""
        self.write("var")
        (self.folder / "config.json").write_text(json.dumps(entries))

    def load(self, **options: Any) -> Checkpoint:
        """The checkpoint, both models read: only then are their values looked at."""
        checkpoint = load_checkpoint(self.paths["var"], self.paths["vae"], **options)
        assert not checkpoint.var.training
        assert not checkpoint.vae.training
        return checkpoint

    def _fresh(self, part: str, suffix: str) -> Path:
        """A new file, for tensors of the old one may still be mapped."""
        self.paths[part] = self.folder / f"{part}{suffix}"
        self.paths[part].unlink(missing_ok=True)
        return self.paths[part]
