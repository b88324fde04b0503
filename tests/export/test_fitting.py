"""Giving a module its tensors: keys and shapes before anything is read, values as they are read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from nextscale.export.lazy import Entry, Lazy
from nextscale.export.state_dict import fitting, load_strictly, open_state, read_floats
from nextscale.plan.errors import InputError


class Small(nn.Module):
    """A parameter, a buffer and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(3, 2))
        self.linear = nn.Linear(2, 4)
        self.register_buffer("counts", torch.empty(2))


def unread(*shape: int, dtype: torch.dtype = torch.float32) -> Lazy:
    return Lazy(torch.Size(shape), dtype, lambda: pytest.fail("it was read"))


def test_keys_and_shapes_are_compared_without_reading() -> None:
    with torch.device("meta"):
        module = Small()
    state: dict[str, Entry] = {"table": unread(3, 2), "linear.weight": unread(4, 2), "counts": unread(2)}
    extra = {"linear.bias": unread(4), "disc.0.weight": unread(9), "a.mask": unread(1), "lost": unread(1)}
    with pytest.raises(InputError, match=r"1 missing: linear.bias; 1 unexpected: x"):
        fitting(module, state | {"x": unread(1)}, Path("file"), ())
    with pytest.raises(InputError, match=r"not finite floats in linear.bias"):
        fitting(module, state | {"linear.bias": unread(4, dtype=torch.int32)}, Path("file"), ())
    with pytest.raises(InputError, match=r"1 unexpected: lost"):
        fitting(module, state | extra, Path("file"), ("disc.", "mask"))
    assert fitting(module, state | extra, Path("file"), ("disc.", "mask", "lost")).keys() == module.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_module_gets_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    given = Small()
    for tensor in given.state_dict().values():
        tensor.normal_()
    given = given.to(dtype)
    torch.save(given.state_dict(), tmp_path / "a.pth")
    with torch.device("meta"):
        module = Small()
    load_strictly(module, open_state(tmp_path / "a.pth", "var"), tmp_path / "a.pth", ())
    for key, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, given.state_dict()[key].float())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_wherever_they_stand(dtype: torch.dtype, value: float) -> None:
    for count in (1, 2, 7, 64, 1001):
        for place in {0, count // 2, count - 1}:
            tensor = torch.ones(count, dtype=dtype)
            assert torch.equal(read_floats(Lazy.of(tensor), "a", Path("file")), torch.ones(count))
            tensor[place] = value
            with pytest.raises(InputError, match="file holds values that are not finite floats in a: the checkpoint"):
                read_floats(Lazy.of(tensor), "a", Path("file"))
    assert read_floats(Lazy.of(torch.empty(0, 3, dtype=dtype)), "a", Path("file")).shape == (0, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_large_file_is_rewritten_in_a_fraction_of_its_size(suffix: str, tmp_path: Path) -> None:
    """200 MB in tensors of 4 MB, in a process of its own."""
    path = tmp_path / f"large{suffix}"
    command = [sys.executable, "-m", "support.large_state", str(path)]
    fixed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once, so that rises count
    tests = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tests, env=fixed)
    made, rewritten, loaded = json.loads(done.stdout)
    size = path.stat().st_size
    assert size > 200e6
    assert rewritten < 0.2 * size
    assert made < 0.2 * size or suffix == ".pth"
    assert 0.9 * size < loaded < 1.2 * size  # the measure sees copies
