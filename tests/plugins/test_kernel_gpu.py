"""The very PTX of ScatterRestore on a GPU against the reference."""

from __future__ import annotations

from functools import cache
from itertools import product
from pathlib import Path

import pytest
import torch
from support.gpu import run_ptx, sanitize
from support.restore_cases import Case, tolerance

from nextscale.plugins import kernel
from nextscale.plugins.scatter_restore import scatter_restore_reference
from nextscale.plugins.signature import INPUTS
from nextscale.runtime.backends.nvrtc import compile_ptx

pytestmark = pytest.mark.gpu

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
GUARD = 64
CASES = {
    "grown": Case((16, 16), (10, 10), kept=102, width=264),
    "shrunk": Case((5, 7), (12, 11), kept=9, rows=3, width=520),
    "odd": Case((9, 4), (3, 3), kept=20, width=35),
    "one kept": Case((8, 8), (8, 8), kept=1, rows=1, width=64),
    "all kept": Case((8, 8), (4, 4), kept=64, rows=4, width=128),
    "as at 1024 px": Case((40, 40), (24, 24), kept=800, width=2048),
}


@cache
def ptx_of(part: torch.dtype, full: torch.dtype) -> bytes:
    options = kernel.options(NAMES[part], NAMES[full])
    return compile_ptx(kernel.source(), kernel.FILE, kernel.ARCHITECTURE, options)


@pytest.mark.parametrize("skew", [0, 1], ids=["aligned", "unaligned"])
@pytest.mark.parametrize("part, full", list(product(NAMES, NAMES)), ids=lambda dtype: NAMES[dtype])
@pytest.mark.parametrize("name", CASES)
def test_kernel_is_the_reference(name: str, part: torch.dtype, full: torch.dtype, skew: int) -> None:
    size = CASES[name]
    case = Case(size.grid, size.cache_grid, size.kept, size.rows, size.width, (part, full), seed=5)
    tensors = dict(zip(INPUTS, case.inputs(), strict=True))
    expected = scatter_restore_reference(*tensors.values())
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    tensors["result"] = torch.full((expected.numel() + GUARD,), torch.nan, dtype=full)
    run_ptx(ptx_of(part, full), tensors, lambda addresses: kernel.launch(shapes, addresses), skew)
    result, behind = tensors["result"].split([expected.numel(), GUARD])
    close = {"rtol": 1e-2, "atol": 1e-2} if full == torch.bfloat16 else tolerance(full)
    torch.testing.assert_close(result.view(expected.shape), expected, **close)
    assert behind.isnan().all()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("tool", ["memcheck", "initcheck"])
def test_sanitizer_finds_nothing(tool: str) -> None:
    sanitize(Path(__file__), tool)
