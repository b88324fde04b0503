"""NVRTC compiles without a GPU: what it makes, how it refuses, and that any GPU's assembler takes the result."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.assemble import ARCHITECTURES, assemble

from nextscale.runtime.backends.nvrtc import compile_ptx
from nextscale.runtime.errors import BackendError

SOURCE = 'extern "C" __global__ void put(int* out) { out[threadIdx.x] = NUMBER; }'


def test_ptx_is_text_for_any_gpu_from_ampere_on() -> None:
    ptx = compile_ptx(SOURCE, "put.cu", options=("-DNUMBER=7",))
    lines = ptx.decode().splitlines()
    assert ".version 8.0" in lines, "newer PTX is refused by drivers of that CUDA version"
    assert ".target sm_80" in lines
    assert any(line.startswith(".visible .entry put(") for line in lines)
    for architecture in ARCHITECTURES:
        assert assemble(ptx, architecture).cubin.startswith(b"\x7fELF")


def test_a_later_architecture_keeps_the_ptx_version_that_it_needs() -> None:
    ptx = compile_ptx(SOURCE, "put.cu", arch="compute_120", options=("-DNUMBER=7",))
    assert b".target sm_120" in ptx
    assert b".version 8.0" not in ptx
    assert assemble(ptx, "sm_120").cubin


def test_a_refused_source_is_named_with_the_compiler_s_log() -> None:
    with pytest.raises(BackendError, match=r'(?s)put\.cu for compute_80 .*put\.cu\(1\).*"NUMBER" is undefined'):
        compile_ptx(SOURCE, "put.cu")


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(BackendError, match=r"compute_1 .*(?s:.)*gpu-architecture"):
        compile_ptx(SOURCE, "put.cu", arch="compute_1")


def test_without_the_compiler_it_says_what_to_install() -> None:
    code = """
import sys
sys.modules["cuda.bindings.nvrtc"] = None
from nextscale.runtime.backends.nvrtc import compile_ptx
from nextscale.runtime.errors import BackendError
try:
    compile_ptx("", "empty.cu")
except BackendError as refusal:
    sys.stderr.write(str(refusal))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs NVRTC" in run.stderr
    assert "pip install 'nextscale[cuda]'" in run.stderr
