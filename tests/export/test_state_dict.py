"""Files that are no checkpoints are refused in a sentence, and no pickle is ever run."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.checkpoints import Files
from torch import Tensor, nn

from nextscale.export.state_dict import open_state, read_state
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


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)


def a_view(data: st.DataObject, base: Tensor) -> Tensor:
    """A tensor over some of another's storage: a slice, reordered axes, or an axis that repeats."""
    slices = tuple(
        slice(data.draw(st.integers(0, n)), None, data.draw(st.integers(1, 3), label="step")) for n in base.shape
    )
    view = base[slices]
    view = view.permute(data.draw(st.permutations(range(view.ndim))))
    return view.unsqueeze(0).expand(3, *view.shape) if data.draw(st.booleans(), label="expanded") else view


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_views_of_shared_storages_are_read_as_they_are(data: st.DataObject, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("views")
    bases = [
        torch.randint(0, 100, data.draw(st.lists(st.integers(0, 5), max_size=3))).to(data.draw(st.sampled_from(DTYPES)))
        for _ in range(2)
    ]
    state = {f"base.{i}": base for i, base in enumerate(bases)}
    state |= {f"view.{i}": a_view(data, data.draw(st.sampled_from(bases))) for i in range(4)}
    state["parameter"] = nn.Parameter(torch.ones(2))
    torch.save(state, folder / "a.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file({key: tensor.detach().clone().contiguous() for key, tensor in state.items()}, folder / "a.safetensors")
    for name in ("a.pth", "old.pth", "a.safetensors"):
        found = open_state(folder / name, "var")
        assert found.keys() == state.keys()
        for key, wanted in state.items():
            assert (found[key].shape, found[key].dtype) == (wanted.shape, wanted.dtype)
            assert (found[key].ndim, found[key].nbytes) == (wanted.ndim, wanted.numel() * wanted.element_size())
            read = found[key].read()
            assert read.is_contiguous()
            assert torch.equal(read, wanted)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_was_read_is_memory_of_its_own(suffix: str, tmp_path: Path) -> None:
    path, state = tmp_path / f"a{suffix}", {"a": torch.ones(5)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    entry = open_state(path, "var")["a"]
    entry.read().zero_()
    assert entry.read().tolist() == [1.0] * 5
    kept = entry.read()
    path.write_bytes(b"")
    assert kept.tolist() == [1.0] * 5


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_cut_or_gone_after_it_was_opened(suffix: str, tmp_path: Path) -> None:
    path, state = tmp_path / f"a{suffix}", {"a": torch.ones(500)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    entry = open_state(path, "var")["a"]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=f"^{path} cannot be read as a checkpoint \\(it ends before its tensors do"):
        entry.read()
    path.unlink()
    with pytest.raises(InputError, match=f"^{path} cannot be read as a checkpoint \\(No such file"):
        entry.read()


def repacked(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """A PyTorch file whose records another program wrote, each changed by its name within the archive."""
    new = path.with_name("repacked.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w", method) as archive:
        for record in old.infolist():
            name = record.filename.partition("/")[2]
            if name not in (".format_version", ".storage_alignment"):  # another program's records begin elsewhere
                archive.writestr(f"a/{name}", change(name, old.read(record)))
    return new


def test_records_that_another_program_packed(tmp_path: Path) -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor(7.0)}
    torch.save(state, tmp_path / "a.pth")
    found = read_state(repacked(tmp_path / "a.pth", lambda name, content: content), "var")
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_tensors_that_are_not_where_the_file_says(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(600.0)}, tmp_path / "a.pth")
    short = repacked(tmp_path / "a.pth", lambda name, content: content[:2000] if name == "data/0" else content)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        open_state(short, "var")
    packed = repacked(tmp_path / "a.pth", lambda name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        open_state(packed, "var")


def test_a_file_of_the_other_byte_order(tmp_path: Path) -> None:
    other = "big" if sys.byteorder == "little" else "little"
    torch.save({"a": torch.arange(6.0)}, tmp_path / "a.pth")

    def swapped(name: str, content: bytes) -> bytes:
        if name == "byteorder":
            return other.encode()
        return np.frombuffer(content, np.float32).byteswap().tobytes() if name == "data/0" else content

    assert read_state(repacked(tmp_path / "a.pth", swapped), "var")["a"].tolist() == [0, 1, 2, 3, 4, 5]


NESTED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "VAR's trainer": ("var", lambda state: {"trainer": {"var_wo_ddp": state, "opt": {"lr": 0.1}}, "epoch": 3}),
    "Infinity's trainer": ("var", lambda state: {"trainer": {"gpt_fsdp": state}}),
    "VAR's tokenizer": ("vae", lambda state: {"trainer": {"vae_local": state}}),
    "Infinity's tokenizer": ("vae", lambda state: {"vae": state, "ema": {"a": 1}, "iteration": 7}),
    "HART's tokenizer": ("vae", lambda state: {f"vae.{key}": tensor for key, tensor in state.items()}),
    "a text encoder": ("text", lambda state: state),
}


@pytest.mark.parametrize(("part", "nest"), NESTED.values(), ids=NESTED)
def test_where_upstreams_nest_a_state_dict(part: str, nest: Callable[[Any], Any], tmp_path: Path) -> None:
    torch.save(nest({"a.b": torch.ones(2), "c": torch.zeros(1)}), tmp_path / "a.pth")
    found = read_state(tmp_path / "a.pth", part)
    assert {key: tensor.tolist() for key, tensor in found.items()} == {"a.b": [1, 1], "c": [0]}


def test_a_trainer_s_parts_are_named_where_all_are_missing(tmp_path: Path) -> None:
    torch.save({"trainer": {"vae_local": {}}}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"without \['trainer'\]\['var_wo_ddp'\] or \['trainer'\]\['gpt_fsdp'\]$"):
        open_state(tmp_path / "a.pth", "var")


def test_a_key_with_and_without_its_prefix(tmp_path: Path) -> None:
    save_file({"vae.a": torch.ones(1), "a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"holds a with and without 'vae.' before it"):
        open_state(tmp_path / "a.safetensors", "vae")
