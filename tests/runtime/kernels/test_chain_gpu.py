"""The chain's PTX on a GPU: noise bit for bit, and what is not finite."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support.gpu import run_ptx, sanitize

from nextscale.runtime.backends.nvrtc import compile_ptx
from nextscale.runtime.kernels import chain
from nextscale.runtime.noise import fill

pytestmark = pytest.mark.gpu

KEYS = [(0, 0), (2**63 - 1, 3), (12345, 2**40)]


@cache
def ptx() -> bytes:
    return compile_ptx(chain.source(), chain.FILE, "compute_75")


@pytest.mark.parametrize("count", [1, 7, 8, 4096, 100_003, 256 * 4096])
@pytest.mark.parametrize("skew", [0, 1], ids=["aligned", "unaligned"])
def test_uniforms_are_the_noise_rule_s(count: int, skew: int) -> None:
    tensors = {"keys": torch.tensor(KEYS, dtype=torch.int64), "out": torch.full((len(KEYS), count), 7.0)}
    run_ptx(ptx(), tensors, lambda at: chain.uniforms(at["keys"], at["out"], len(KEYS), count, step=9, stream=1), skew)
    expected = fill(np.empty((len(KEYS), count), np.float32), KEYS, 9, 1)
    assert np.array_equal(tensors["out"].numpy(), expected)


@pytest.mark.parametrize("count", [1, 7, 4099, 2**21 + 3])
@pytest.mark.parametrize("skew", [0, 1], ids=["aligned", "unaligned"])
def test_flags_are_numpy_s(count: int, skew: int) -> None:
    values = torch.zeros(4, count)
    values[1, count - 1], values[3, count // 2] = torch.nan, -torch.inf
    tensors = {"values": values, "flags": torch.zeros(4, dtype=torch.int32)}
    run_ptx(ptx(), tensors, lambda at: chain.flag_nonfinite(at["values"], at["flags"], 4, count), skew)
    assert tensors["flags"].tolist() == [0, 1, 0, 1]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tool", ["memcheck", "initcheck"])
def test_sanitizer_finds_nothing(tool: str) -> None:
    sanitize(Path(__file__), tool)
