"""Files that are no checkpoints are refused in a sentence, and no pickle is ever run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import Files

from nextscale.plan.errors import InputError


def test_no_file_and_a_folder(files: Files) -> None:
    for path in (files.folder / "none.pth", files.folder):
        files.paths["var"] = path
        with pytest.raises(InputError, match=f"no checkpoint at {path}"):
            files.load()


class Loud:
    """Would leave a file behind if it were ever unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("by_torch", [True, False])
def test_a_pickled_object_is_never_run(by_torch: bool, files: Files) -> None:
    mark = files.folder / "ran"
    content = {"pos_start": Loud(mark)}
    if by_torch:
        files.write("var", content)
    else:
        files.raw("var", pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match="is refused: it holds more than tensors"):
        files.load()
    assert not mark.exists()


def test_a_whole_module_is_refused(files: Files) -> None:
    files.write("var", torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="is refused: it holds more than tensors"):
        files.load()


@pytest.mark.parametrize("length", [0, 1, 3, 100, 0.1, 0.5, 0.9, -30, -1])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(suffix: str, length: float, files: Files) -> None:
    whole = files.paths["var"].read_bytes()
    if suffix == ".safetensors":
        save_file({k: t.contiguous() for k, t in files.states["var"].items()}, files.folder / "whole")
        whole = (files.folder / "whole").read_bytes()
    path = files.raw("var", whole[: int(length * len(whole)) if 0 < length < 1 else int(length)], suffix)
    with pytest.raises(InputError, match=f"^{path} (cannot be read as a checkpoint|is no PyTorch file)"):
        files.load()


NO_CHECKPOINTS = {
    "a web page": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
    "noise": bytes(range(256)) * 8,
}


@pytest.mark.parametrize("content", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS.keys())
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_something_else(suffix: str, content: bytes, files: Files) -> None:
    path = files.raw("vae", content, suffix)
    with pytest.raises(InputError, match=f"^{path} (cannot be read as a checkpoint|is no PyTorch file)") as caught:
        files.load()
    assert "more than tensors" not in str(caught.value)


def test_a_safetensors_file_under_a_name_of_pytorch(files: Files) -> None:
    save_file({k: t.contiguous() for k, t in files.states["var"].items()}, files.folder / "var.pth")
    files.paths["var"] = files.folder / "var.pth"
    with pytest.raises(InputError, match=r"or name it \.safetensors if it is that"):
        files.load()


def test_damaged_pickles_end_in_a_sentence(files: Files) -> None:
    """One flipped bit in the list of tensors: another checkpoint or a refusal, never another error."""
    whole = files.paths["var"].read_bytes()
    start = whole.index(b"ctorch._utils") - 20
    refused = 0
    for i in range(60):
        damaged = bytearray(whole)
        damaged[start + 18 * i] ^= 1 << i % 8
        files.raw("var", bytes(damaged))
        try:
            files.load()
        except InputError as error:
            refused += str(files.paths["var"]) in str(error)
    assert refused > 40


CONTENTS: dict[str, Any] = {
    "a list": [torch.zeros(2)],
    "a tensor": torch.zeros(3),
    "nothing": {},
    "numbers": {"pos_start": 1},
    "keys that are numbers": {0: torch.zeros(2)},
    "another nesting": {"state_dict": {"pos_start": torch.zeros(1)}},
    "a trainer that is none": {"trainer": 3},
    "a trainer of numbers": {"trainer": {"var_wo_ddp": {"pos_start": 1}}},
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_file_without_a_flat_state_dict(content: Any, files: Files) -> None:
    files.write("var", content)
    with pytest.raises(InputError, match="does not hold a flat state dict of tensors: give the var checkpoint itself"):
        files.load()


def test_a_training_file_without_the_part(files: Files) -> None:
    files.write("vae", {"trainer": {"var_wo_ddp": files.states["var"]}})
    with pytest.raises(InputError, match=r"is a training file without \['trainer'\]\['vae_local'\]"):
        files.load()
