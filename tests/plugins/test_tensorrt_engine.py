"""TensorRT engines of one node: with the plugin on a GPU, and with the function for a named GPU anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from support.plugin_engine import SEED, SIZE

from nextscale.compare.restore_speed import drawn
from nextscale.plugins.scatter_restore import scatter_restore_reference

TESTS = Path(__file__).resolve().parent.parent
PAIRS = [("float32", "float32"), ("float16", "float32"), ("bfloat16", "float32"), ("float16", "float16")]


def call(what: str, flavor: str, part: str, full: str, engine: Path) -> str:
    """``support/plugin_engine.py`` in a process of its own."""
    command = [sys.executable, str(TESTS / "support" / "plugin_engine.py"), what, flavor, part, full, str(engine)]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def expected(part: str, full: str) -> torch.Tensor:
    dtypes = {"kept": part, "cache": part, "index": "int32", "residual": full}
    inputs = [
        torch.frombuffer(values.copy(), dtype=getattr(torch, dtypes.get(name, "float32"))).view(SIZE.shapes[name])
        for name, values in drawn(SIZE, part, full, SEED).items()
    ]
    return scatter_restore_reference(*inputs)


@pytest.mark.parametrize("part, full", PAIRS)
def test_tensorrt_rtx_builds_the_function(part: str, full: str, tmp_path: Path) -> None:
    engine = tmp_path / "node.engine"
    assert call("build", "tensorrt-rtx", part, full, engine) == "0"
    assert engine.stat().st_size > 1000


@pytest.mark.gpu
@pytest.mark.parametrize("part, full", PAIRS)
def test_an_engine_with_the_plugin_runs_where_the_plugin_is_unknown(part: str, full: str, tmp_path: Path) -> None:
    """The kernel is in the engine: the process that runs it has registered nothing."""
    if find_spec("tensorrt") is None:
        pytest.skip("tensorrt is not installed: pip install 'nextscale[tensorrt]'")
    engine = tmp_path / "node.engine"
    assert call("build", "tensorrt", part, full, engine) == "1"
    call("run", "tensorrt", part, full, engine)
    reference = expected(part, full)
    found = torch.frombuffer(bytearray(engine.with_suffix(".result").read_bytes()), dtype=reference.dtype)
    close = {"rtol": 1e-3, "atol": 1e-3} if full == "float16" else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found.view(reference.shape), reference, **close)
