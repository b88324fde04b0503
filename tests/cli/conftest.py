"""Running the command line: in this process for speed, or in one of its own where imports or signals matter."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.bundles import write_bundle
from support.command import Command, Run

from nextscale.cli.main import app


@pytest.fixture
def nextscale(capsys: pytest.CaptureFixture[str]) -> Command:
    """``nextscale("plan", "var-d16")``: a command in this process."""

    def run(*arguments: str | Path) -> Run:
        capsys.readouterr()
        status = app([str(a) for a in arguments], standalone_mode=False)
        found = capsys.readouterr()
        return Run(status, found.out, found.err)

    return run


@pytest.fixture(scope="session")
def fresh() -> Command:
    """The same in a process of its own; ``before`` is Python that runs first."""

    def run(*arguments: str | Path, before: str = "", **environment: str) -> Run:
        code = f"{before}\nimport sys\nfrom nextscale.cli.main import app\napp(sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return Run(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of drawn graphs with three named classes, made without an exporter. Read only."""
    return write_bundle(tmp_path_factory.mktemp("toy") / "toy")


@pytest.fixture
def own_toy(toy: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(toy, tmp_path / "toy"))
