"""The kernel's PTX, made and assembled without a GPU: small, within its registers, moving 16 bytes at a time."""

from __future__ import annotations

import re
from itertools import product

import pytest
from support.assemble import ARCHITECTURES, assemble

from nextscale.plugins import kernel
from nextscale.runtime.backends.nvrtc import compile_ptx

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
PAIRS = tuple(product(SIZES, SIZES))
# How PTX writes an access of so many values of a size.
ACCESSES = {(4, 4): r"v4\.[fbu]32", (2, 8): r"v4\.[bu]32", (2, 4): r"(?:v4\.[bu]16|v2\.[bu]32)"}


def ptx_of(part: str, full: str) -> bytes:
    return compile_ptx(kernel.source(), kernel.FILE, kernel.ARCHITECTURE, kernel.options(part, full))


@pytest.mark.parametrize("part, full", PAIRS)
def test_ptx_assembles_for_every_gpu_without_spilling(part: str, full: str) -> None:
    ptx = ptx_of(part, full)
    for architecture in ARCHITECTURES:
        made = assemble(ptx, architecture)
        assert made.local_bytes == 0, "registers spilled, or an array went to memory"
        assert made.registers <= 48, "fewer than 40 warps of an SM at once"


@pytest.mark.parametrize("part, full", PAIRS)
def test_ptx_is_one_small_kernel_of_wide_accesses(part: str, full: str) -> None:
    text = ptx_of(part, full).decode()
    assert re.findall(r"\.entry (\w+)\(", text) == [kernel.KERNEL]
    assert len(text) < 32_000, "an engine holds it once for each pruned sub-layer"
    values = 16 // max(SIZES[part], SIZES[full])
    moved = {dtype: rf"\.global(?:\.nc)?\.{ACCESSES[SIZES[dtype], values]}" for dtype in (part, full)}
    assert re.search(r"\bld" + moved[part], text)
    assert re.search(r"\bld" + moved[full], text)
    assert re.search(r"\bst" + moved[full], text)
    assert not re.search(r"\b(atom|red|bar|barrier|shfl|vote)\b|\.shared|\.local", text)
