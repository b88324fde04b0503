"""A packed target of a bundle with real weights, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.packed import pack


@pytest.fixture(scope="session")
def packed(tiny_pruned_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny bundle with FastVAR, its target beside it. Read only."""
    bundle = Path(shutil.copytree(tiny_pruned_bundle, tmp_path_factory.mktemp("packed") / "tiny"))
    pack(bundle)
    return bundle


@pytest.fixture
def own_packed(packed: Path, tmp_path: Path) -> Path:
    """The same, to be broken."""
    shutil.copytree(packed.with_name("tiny.targets"), tmp_path / "tiny.targets")
    return Path(shutil.copytree(packed, tmp_path / "tiny"))


@pytest.fixture
def own_target(own_packed: Path) -> Path:
    """The folder of its target."""
    (folder,) = own_packed.with_name("tiny.targets").iterdir()
    return folder
