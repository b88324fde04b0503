"""The module that calls CUDA, for real, down to a driver library of host memory: no GPU, and no double above it."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import host_driver
from support.host_kernel import compiler

TESTS = Path(host_driver.__file__).parent.parent


@pytest.mark.skipif(sys.platform != "linux", reason="the driver's name and how it is found are Linux's")
@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="this machine has a driver: see test_gpu.py")
def test_cuda_core_takes_what_is_asked_of_it(aligned: Path, tmp_path: Path) -> None:
    library = tmp_path / "host_driver.so"
    source = TESTS / "support" / "host_driver.cpp"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([compiler(), *flags, "-o", library, source], check=True)
    bundle = shutil.copytree(aligned, tmp_path / "tiny")
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "support.host_driver", library, bundle]
    run = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=150, check=False)
    assert run.returncode == 0, run.stderr
