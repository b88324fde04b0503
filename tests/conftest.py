"""What tests of several roots share: a tiny drawn checkpoint and its bundles, made once per session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The transformer's and the tokenizer's ``.pth`` file. Read only."""
    pytest.importorskip("torch")
    return tiny.draw_tiny(tmp_path_factory.mktemp("tiny") / "drawn")


@pytest.fixture(scope="session")
def tiny_traced() -> dict[Any, Any]:
    """Pieces that the tiny bundles have in common are traced once."""
    return {}


@pytest.fixture(scope="session")
def tiny_bundle(
    tiny_checkpoint: tuple[Path, Path], tiny_traced: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The full bundle of the tiny checkpoint (recipe ``var-d16`` with its numbers). Read only: copy it to change it."""
    return tiny.export_tiny(tiny_checkpoint, tmp_path_factory.mktemp("engines") / "full", "var-d16", tiny_traced)


@pytest.fixture(scope="session")
def tiny_pruned_bundle(
    tiny_checkpoint: tuple[Path, Path], tiny_traced: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundle of the tiny checkpoint with FastVAR (recipe ``var-d16-fastvar``). Read only."""
    return tiny.export_tiny(
        tiny_checkpoint, tmp_path_factory.mktemp("engines") / "pruned", "var-d16-fastvar", tiny_traced
    )
