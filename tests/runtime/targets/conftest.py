"""A target of the tiny bundle, built once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import targets


@pytest.fixture(scope="session")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a target that no test may change."""
    return targets.build(bundle, tmp_path_factory.mktemp("targets")).folder


@pytest.fixture
def own_built(built: Path, own_bundle: Path) -> Path:
    """A copy beside a copy of its bundle, which a test may break."""
    return Path(shutil.copytree(built, own_bundle.with_name(f"{own_bundle.name}.targets") / built.name))
