"""Running our PTX on a GPU, for tests with the marker ``gpu``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from torch import Tensor

from nextscale.plugins.kernel import Launch
from nextscale.runtime.backends.cuda import open_device

REPOSITORY = Path(__file__).resolve().parents[2]


def run_ptx(
    ptx: bytes, tensors: Mapping[str, Tensor], launch: Callable[[dict[str, int]], Launch], skew: int = 0
) -> None:
    """Runs a kernel on copies of the host's tensors and copies what is there afterwards back into them.

    ``launch`` makes the launch for the copies' addresses, each ``skew`` values behind a multiple of 256.
    """
    device = open_device()
    stream = device.stream()
    sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
    blocks = {name: device.allocate(sizes[name] + skew * t.element_size()) for name, t in tensors.items()}
    addresses = {name: block.address + skew * tensors[name].element_size() for name, block in blocks.items()}
    for name, tensor in tensors.items():
        stream.upload(addresses[name], tensor.data_ptr(), sizes[name])
    asked = launch(addresses)
    kernel = device.kernels(ptx, asked.kernel)(asked.kernel)
    stream.launch(kernel, asked.grid, asked.block, asked.arguments)
    for name, tensor in tensors.items():
        stream.download(tensor.data_ptr(), addresses[name], sizes[name])
    stream.wait()
    for block in blocks.values():
        block.free()


def sanitize(test: Path, tool: str) -> None:
    """Runs a file's other GPU tests under NVIDIA's sanitizer; skips where that is not installed."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed (it comes with the CUDA toolkit)")
    tests = [
        sys.executable,
        "-m",
        "pytest",
        str(test),
        "-m",
        "gpu",
        "-k",
        "not sanitizer",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command = [sanitizer, "--tool", tool, "--error-exitcode", "97", "--target-processes", "all", *tests]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if "Device not supported" in run.stdout:
        pytest.skip("compute-sanitizer does not work with this machine's driver")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
