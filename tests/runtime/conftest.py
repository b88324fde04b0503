"""A tiny bundle, written once, and pipelines over it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support.bundles import write_bundle

from nextscale.runtime import Pipeline

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def own_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(bundle, tmp_path / "tiny"))


@pytest.fixture
def open_pipeline(bundle: Path) -> Iterator[Callable[..., Pipeline]]:
    """Open the bundle with options; closed at the end."""
    opened: list[Pipeline] = []

    def make(**options: object) -> Pipeline:
        opened.append(Pipeline.open(bundle, **{"threads": 1, **options}))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for pipeline in opened:
        pipeline.close()


@pytest.fixture
def pipeline(open_pipeline: Callable[..., Pipeline]) -> Pipeline:
    """The bundle as it opens by itself."""
    return open_pipeline()
