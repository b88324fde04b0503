"""What is timed is the kernel, by turns with copies: on a device made of host memory, whose clock counts requests."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import host_kernels
from support.host_cuda import HostDevice, HostStream
from support.host_kernel import HostKernel

from nextscale.compare import restore_speed
from nextscale.compare.restore_speed import SIZES, Buffers, Size, drawn, launch, measure
from nextscale.plugins import kernel
from nextscale.plugins.kernel import Launch
from nextscale.plugins.scatter_restore import scatter_restore_reference
from nextscale.plugins.signature import INPUTS

SMALL = Size("small", (6, 5), (4, 3), kept=7, width=32)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostDevice:
    """It runs the kernel's own source; a mark is the number of launches and copies asked for before it."""
    run = HostKernel(kernel.source(), kernel.KERNEL, tmp_path, kernel.options("float16", "float32"))

    def restore(grid: Any, block: Any, *arguments: Any) -> None:
        run(Launch(kernel.KERNEL, grid, block, arguments))

    def mark(stream: HostStream) -> int:
        return sum(record[1] for record in stream.device.asked("graph"))

    monkeypatch.setitem(host_kernels.KERNELS, kernel.KERNEL, restore)
    monkeypatch.setattr(HostStream, "mark", mark, raising=False)
    monkeypatch.setattr(HostStream, "seconds", lambda _, first, last: float(last - first), raising=False)
    return HostDevice()


def test_what_is_timed_is_the_kernel_on_drawn_inputs(device: Any) -> None:
    stream = device.stream()
    buffers = Buffers(device, stream, SMALL, "float16", "float32", seed=3)
    launch(stream, restore_speed.loaded(device, "float16", "float32"), SMALL, buffers.addresses)
    stream.wait()
    lengths = SMALL.lengths("float16", "float32")
    dtypes = {"kept": torch.float16, "cache": torch.float16, "index": torch.int32}

    def there(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        content = bytearray(ctypes.string_at(buffers.addresses[name], lengths[name]))
        return torch.frombuffer(content, dtype=dtypes.get(name, torch.float32)).view(shape)

    expected = scatter_restore_reference(*(there(name, shape) for name, shape in SMALL.shapes.items()))
    torch.testing.assert_close(there("result", (2, 30, 32)), expected)


def test_measure_works_through_sets_by_turns_and_gives_all_back(device: Any) -> None:
    moved = SMALL.moved("float16", "float32")
    speed = measure(device, SMALL, "float16", "float32", runs=4, working_set=3 * moved)
    assert speed.kernel.runs == speed.copy.runs == 4
    assert (speed.kernel.median, speed.share) == (1.0, 1.0)  # of each of the three sets
    assert speed.moved == moved
    copied = {record[2] for record in device.asked("captured") if record[1] == "copy"}
    assert copied == {moved // 2}
    assert not device.blocks, "memory was not given back"


def test_bytes_are_every_tensor_s_once() -> None:
    assert SMALL.moved("float16", "float32") == 2 * (7 * 32 * 2 + 7 * 4 + 12 * 32 * 2 + 2 * 30 * 32 * 4) + 4 * (24 + 15)
    assert SMALL.lengths("bfloat16", "bfloat16")["result"] == 2 * 30 * 32 * 2


@pytest.mark.parametrize("size", [SMALL, *SIZES], ids=lambda size: size.name)
def test_sizes_fit_the_kernel(size: Size) -> None:
    kernel.geometry(size.shapes)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_drawn_values_are_numbers_of_their_dtype(dtype: str) -> None:
    inputs = drawn(SMALL, dtype, "float32", seed=0)
    assert {name: values.size for name, values in inputs.items()} == {
        name: length for name, length in SMALL.lengths(dtype, "float32").items() if name in INPUTS
    }
    kept = torch.frombuffer(inputs["kept"].copy(), dtype=getattr(torch, dtype)).float()
    assert kept.abs().max() <= 1
    assert kept.std() > 0.4
    index = inputs["index"].view(np.int32).reshape(SMALL.shapes["index"])
    assert (np.diff(index, axis=1) > 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("part, full", [("float16", "float32"), ("bfloat16", "bfloat16")])
def test_measure_on_a_gpu(part: str, full: str) -> None:
    from nextscale.runtime.backends.cuda import open_device

    speed = measure(open_device(), SIZES[0], part, full, runs=5)
    assert 0 < speed.kernel.low <= speed.kernel.median
    assert speed.share > 0
