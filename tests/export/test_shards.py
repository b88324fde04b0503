"""Checkpoints in folders: shards with their index, one file, averaged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nextscale.export.shards import files_of
from nextscale.export.state_dict import open_state, read_state
from nextscale.plan.errors import InputError

SHARDS = {"one": {"a": torch.ones(2), "b": torch.zeros(3)}, "two": {"c": torch.full((1,), 2.0)}}


def sharded(folder: Path, suffix: str = ".safetensors", **shards: dict[str, Tensor]) -> Path:
    """A folder as model hubs lay it out; ``shards`` take the place of what the index says."""
    folder.mkdir()
    weight_map = {key: name + suffix for name, state in SHARDS.items() for key in state}
    for name, state in (SHARDS | shards).items():
        path = folder / (name + suffix)
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    index = "model.safetensors.index.json" if suffix == ".safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_with_their_index(suffix: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "shards", suffix)
    found = read_state(folder, "var")
    assert {key: tensor.tolist() for key, tensor in found.items()} == {"a": [1, 1], "b": [0, 0, 0], "c": [2]}
    index, *shards = files_of(folder)
    assert (index.suffix, [path.stem for path in shards]) == (".json", ["one", "two"])


def test_shards_that_their_index_does_not_describe(tmp_path: Path) -> None:
    more = sharded(tmp_path / "more", two={"c": torch.ones(1), "d": torch.ones(1)})
    with pytest.raises(InputError, match=r"two.safetensors does not hold what .* says \(1 keys differ, d for one"):
        open_state(more, "var")
    less = sharded(tmp_path / "less", two={"e": torch.ones(1)})
    with pytest.raises(InputError, match=r"2 keys differ, c for one"):
        open_state(less, "var")
    lost = sharded(tmp_path / "lost")
    (lost / "two.safetensors").unlink()
    with pytest.raises(InputError, match=r"lost lacks two.safetensors, which .* names: fetch it too"):
        open_state(lost, "var")
    cut = sharded(tmp_path / "cut")
    (cut / "two.safetensors").write_bytes((cut / "two.safetensors").read_bytes()[:-1])
    with pytest.raises(InputError, match=f"^{cut / 'two.safetensors'} cannot be read as a checkpoint"):
        open_state(cut, "var")


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "..", "", "a\\b", 3, None, ["a"]])
def test_an_index_names_files_of_its_folder_alone(name: Any, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    folder = sharded(tmp_path / "shards")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match=r"names a shard .*, which is no file of its folder|is no index of shards"):
        open_state(folder, "var")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": []}', "\xff"])
def test_an_index_that_is_none(content: str, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "shards")
    (folder / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"index.json is no index of shards: fetch it again"):
        open_state(folder, "var")


def test_a_folder_with_one_file_with_averaged_weights_and_with_several(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert read_state(tmp_path, "var")["a"].tolist() == [1]
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"holds several checkpoints \(model.safetensors, other.pth\): give one of"):
        open_state(tmp_path, "var")
    torch.save({"a": torch.full((1,), 2.0)}, tmp_path / "ema_model.bin")
    assert read_state(tmp_path, "var")["a"].tolist() == [2]
