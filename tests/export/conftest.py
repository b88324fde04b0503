"""What the exporter's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.checkpoints import Files


@pytest.fixture
def files(tmp_path: Path, tiny_checkpoint: tuple[Path, Path]) -> Files:
    """The tiny drawn checkpoint, to be changed."""
    return Files(tmp_path, tiny_checkpoint)
