"""The ONNX Runtime backend: what it refuses, and that its sessions share one copy of the weights."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import nextscale.runtime.backends.onnxruntime as backend_module
from nextscale.plan.errors import InputError
from nextscale.runtime.backends import make_backend
from nextscale.runtime.backends.base import Bound
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import Graph, Tensor


@pytest.fixture
def backend() -> OnnxRuntime:
    return OnnxRuntime(threads=1)


def graph_of(folder: Path, name: str = "step_01") -> tuple[Path, Graph]:
    graph = open_bundle(folder).manifest.graph(name)
    return folder / graph.file, graph


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="backend 'tensorflow' is none of onnxruntime"):
        make_backend("tensorflow")
    with pytest.raises(InputError, match="devices 'cpu' and 'cuda'; found 'tpu'"):
        make_backend("onnxruntime", "tpu")
    with pytest.raises(InputError, match="threads is 1 to 256"):
        make_backend("onnxruntime", threads=0)


def test_cuda_that_is_not_there_is_an_error_and_not_a_slower_run() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match=r"has no CUDAExecutionProvider.*pip install 'nextscale\[cuda\]'"):
        make_backend("onnxruntime", "cuda")


def test_both_packages_are_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert backend_module.both_installed() is None
    both = ["onnxruntime", "onnxruntime-gpu"]
    monkeypatch.setattr(backend_module, "installed_packages", lambda: both)
    with caplog.at_level(logging.WARNING, "nextscale.runtime"):
        OnnxRuntime()
    assert "onnxruntime and onnxruntime-gpu are both installed" in caplog.text
    with pytest.raises(BackendError, match="both installed and overwrite each other's files"):
        OnnxRuntime(device="cuda")


def test_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'nextscale\[cpu\]'"):
        OnnxRuntime()


@pytest.mark.parametrize("content", [b"", b"garbage" * 9], ids=["empty", "garbage"])
def test_a_file_that_is_no_graph(backend: OnnxRuntime, own_bundle: Path, content: bytes) -> None:
    path, graph = graph_of(own_bundle)
    path.write_bytes(content)
    with pytest.raises(BackendError, match=r"ONNX Runtime [\d.]+ cannot load .*step_01\.onnx"):
        backend.load(path, graph)


def test_a_graph_of_another_step(backend: OnnxRuntime, own_bundle: Path) -> None:
    path, graph = graph_of(own_bundle)
    shutil.copyfile(own_bundle / "step_02.onnx", path)
    with pytest.raises(BackendError, match=r"step_01\.onnx is not the graph that the manifest describes: input"):
        backend.load(path, graph)
    shutil.copyfile(own_bundle / "decode.onnx", path)
    with pytest.raises(BackendError, match=r"inputs missing .*unexpected"):
        backend.load(path, graph)


def test_weights_that_are_missing_or_too_short(backend: OnnxRuntime, own_bundle: Path) -> None:
    path, graph = graph_of(own_bundle)
    weights = own_bundle / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:64])
    with pytest.raises(BackendError, match="cannot load"):
        backend.load(path, graph)


def test_a_run_that_fails_is_never_passed_over(backend: OnnxRuntime, tmp_path: Path) -> None:
    """A gather out of range fails inside the run."""
    nodes = [helper.make_node("Gather", ["table", "index.in"], ["value.out"])]
    table = onnx.numpy_helper.from_array(np.zeros(3, np.float32), "table")
    values = [
        helper.make_tensor_value_info(name, kind, ["images"])
        for name, kind in (("index.in", TensorProto.INT32), ("value.out", TensorProto.FLOAT))
    ]
    proto = helper.make_graph(nodes, "g", values[:1], values[1:], [table])
    path = tmp_path / "g.onnx"
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    graph = Graph(
        "g",
        "g.onnx",
        None,
        (Tensor("index.in", "int32", ("images",), "index", 0, "read"),),
        (Tensor("value.out", "float32", ("images",), "value", 0, "replace"),),
    )
    index, value = np.array([7], np.int32), np.zeros(1, np.float32)
    call = backend.load(path, graph).prepare(
        [Bound("index.in", "int32", (1,), index.ctypes.data)], [Bound("value.out", "float32", (1,), value.ctypes.data)]
    )
    with pytest.raises(BackendError, match="ONNX Runtime failed in g"):
        call.execute()
    index[0] = 1
    call.execute()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells")
def test_sessions_take_their_scratch_from_one_arena(tmp_path: Path) -> None:
    """Six sessions with 64 MB of scratch each hold it once: an arena each would be 384 MB."""
    command = [sys.executable, "-m", "support.shared_scratch", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert 32 * 2**20 < int(done.stdout) < 160 * 2**20
