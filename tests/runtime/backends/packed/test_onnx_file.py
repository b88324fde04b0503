"""Reading ONNX files without the package onnx, against the package."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from nextscale.runtime.backends.packed import onnx_file
from nextscale.runtime.errors import BackendError


def graphs(bundle: Path) -> list[Path]:
    return sorted(bundle.glob("*.onnx"))


def test_what_is_read_is_what_the_package_reads(tiny_pruned_bundle: Path) -> None:
    for path in graphs(tiny_pruned_bundle):
        wanted = onnx.load(path, load_external_data=False).graph
        found = onnx_file.read(path)
        there = {tensor.name: entries for tensor, entries in onnx_file.external(found)}
        assert there == {
            t.name: {e.key: e.value for e in t.external_data} for t in wanted.initializer if t.external_data
        }
        kinds: dict[str, set[str]] = {}
        for node in wanted.node:
            for name in node.input:
                kinds.setdefault(name, set()).add(node.op_type)
        assert onnx_file.consumers(found) == kinds


def test_a_file_that_is_written_again_is_the_same_but_for_what_was_changed(
    tiny_pruned_bundle: Path, tmp_path: Path
) -> None:
    for path in graphs(tiny_pruned_bundle):
        model, wanted = onnx_file.read(path), onnx.load(path, load_external_data=False)
        onnx_file.write(tmp_path / "same.onnx", model)
        assert onnx.load(tmp_path / "same.onnx", load_external_data=False) == wanted
        first, _ = next(onnx_file.external(model))
        onnx_file.relocate(first, {"location": "elsewhere", "offset": "5"})
        onnx_file.write(tmp_path / "other.onnx", model)
        (changed,) = (t for t in wanted.graph.initializer if t.name == first.name)
        del changed.external_data[:]
        for key, value in (("location", "elsewhere"), ("offset", "5")):
            changed.external_data.add(key=key, value=value)
        assert onnx.load(tmp_path / "other.onnx", load_external_data=False) == wanted


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph at all")
    with pytest.raises(BackendError, match=r"x\.onnx is not an ONNX file"):
        onnx_file.read(tmp_path / "x.onnx")
