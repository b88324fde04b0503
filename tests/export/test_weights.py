"""The weights file: the library's own layout, one tensor in memory at a time, and what graphs refer to in it."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextscale.export import safetensors_file
from nextscale.export.bundle import reported
from nextscale.export.lazy import Lazy
from nextscale.export.weights import weight_table, write_weights
from nextscale.plan.errors import EnvironmentProblem
from nextscale.runtime.manifest import WEIGHTS_FILE

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8).filter(
    lambda name: name != "__metadata__"
)
TENSORS = st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(list(safetensors_file.NAMES)))


def drawn(shape: list[int], dtype: torch.dtype) -> Tensor:
    return torch.randint(0, 2, shape).to(dtype)


@settings(max_examples=60, deadline=None)
@given(specs=st.dictionaries(NAMES, TENSORS, min_size=1, max_size=8))
def test_the_file_is_the_library_s_byte_for_byte(specs: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("weights")
    tensors = {name: drawn(*spec) for name, spec in specs.items()}
    save_file(tensors, folder / "theirs")
    safetensors_file.write(folder / "eager", tensors)
    safetensors_file.write(folder / "lazy", {n: Lazy(t.shape, t.dtype, lambda t=t: t) for n, t in tensors.items()})
    wanted = (folder / "theirs").read_bytes()
    assert (folder / "eager").read_bytes() == wanted
    assert (folder / "lazy").read_bytes() == wanted
    found = safetensors_file.entries(folder / "lazy")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found[name].read().float(), tensor.float())  # some dtypes cannot be compared


def test_views_are_written_as_they_are(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    views = {"t": base.t(), "row": base[1], "columns": base[:, ::2], "repeated": base[0, 0].expand(5)}
    safetensors_file.write(tmp_path / "a", views)
    for name, tensor in load_file(tmp_path / "a").items():
        assert torch.equal(tensor, views[name])


def test_one_tensor_is_held_at_a_time(tmp_path: Path) -> None:
    made: list[weakref.ref[Tensor]] = []

    def make() -> Tensor:
        assert not any(ref() is not None for ref in made)
        tensor = torch.ones(1000)
        made.append(weakref.ref(tensor))
        return tensor

    write_weights({f"var/{i}": Lazy(torch.Size([1000]), torch.float32, make) for i in range(5)}, tmp_path)
    assert len(made) == 5


def test_graphs_refer_to_what_was_written(tmp_path: Path) -> None:
    tensors = {
        "var/head.weight": torch.randn(3, 4),
        "var/head.bias": torch.randn(3).half(),
        "vae/scalar": torch.tensor(2.5),
        "derived/area_2_4": Lazy(torch.Size((4, 2)), torch.float32, lambda: torch.full((4, 2), 0.25)),
    }
    for name, reference in write_weights(tensors, tmp_path).items():
        wanted = Lazy.of(tensors[name]).read()
        assert reference.name == name
        onnx.external_data_helper.load_external_data_for_tensor(reference, str(tmp_path))
        assert torch.equal(torch.from_numpy(numpy_helper.to_array(reference).copy()), wanted)


def test_another_checkpoint_of_the_same_shapes_gets_the_same_layout(tmp_path: Path) -> None:
    first, second = ({f"var/{i}": torch.randn(i + 1) for i in order} for order in (range(5), reversed(range(5))))
    headers, references = [], []
    for tensors in (first, second):
        references.append(write_weights(tensors, tmp_path))
        headers.append(safetensors_file.header_of(tmp_path / WEIGHTS_FILE))
    assert headers[0] == headers[1]
    assert {n: r.SerializeToString() for n, r in references[0].items()} == {
        n: r.SerializeToString() for n, r in references[1].items()
    }


def test_another_user_can_read_it(tmp_path: Path) -> None:
    was = os.umask(0o077)
    try:
        write_weights({"var/a": torch.ones(1)}, tmp_path)
    finally:
        os.umask(was)
    assert (tmp_path / WEIGHTS_FILE).stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).symlink_to("/dev/full")
    with pytest.raises(EnvironmentProblem, match="the disk is full"), reported(tmp_path / "bundle"):
        write_weights({"var/a": torch.ones(100_000)}, tmp_path)


def test_what_is_made_must_be_what_was_said(tmp_path: Path) -> None:
    wrong = Lazy(torch.Size([2]), torch.float32, lambda: torch.ones(3))
    with pytest.raises(AssertionError):
        safetensors_file.write(tmp_path / "a", {"a": wrong})


def test_files_that_the_library_refuses_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4), "b": torch.ones(2)}, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for damage in (
        whole[:-1],
        whole + b"\0",
        whole.replace(b"[0,16]", b"[0,12]"),
        whole.replace(b"[0,16]", b"[4,20]"),
        whole.replace(b'"shape":[4]', b'"shape":[5]'),
        whole.replace(b'"dtype":"F32"', b'"dtype":"F31"', 1),
    ):
        assert damage != whole
        (tmp_path / "damaged").write_bytes(damage)
        with pytest.raises(SafetensorError):
            safetensors_file.entries(tmp_path / "damaged")


def test_a_dtype_that_no_checkpoint_has(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, dtype=torch.complex64)}, tmp_path / "a")
    with pytest.raises(ValueError, match="a has the dtype C64"):
        safetensors_file.entries(tmp_path / "a")


def test_the_table_needs_no_values() -> None:
    def never() -> Tensor:
        raise AssertionError

    lazy = {"vae/b": Lazy(torch.Size((2, 3)), torch.bfloat16, never), "var/a": torch.ones(2)}
    table = weight_table(lazy)
    assert list(table) == ["vae/b", "var/a"]
    assert (table["vae/b"].dtype, table["vae/b"].shape, table["vae/b"].keys) == ("bfloat16", (2, 3), ("vae/b",))
