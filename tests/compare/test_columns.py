"""Which columns there are on a machine, and what is said of those that are not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import bundles
from support.host_cuda import HostDevice
from support.host_onnxruntime import HostOnnxRuntime
from support.host_tensorrt import HostTensorRT, aligned_plan, write_target

from nextscale.compare import child, columns
from nextscale.compare.columns import choose
from nextscale.compare.lineup import make_specs
from nextscale.compare.sides import Ask, Opener, Spec
from nextscale.plan.errors import EnvironmentProblem, InputError, NextscaleError
from nextscale.runtime.backends import onnxruntime_cuda
from nextscale.runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda
from nextscale.runtime.backends.tensorrt import execute
from nextscale.runtime.backends.tensorrt.execute import TensorRT, TensorRTRTX
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_eager_is_always_one_and_the_first() -> None:
    assert choose(["onnxruntime"], None, 1).names == ("eager", "onnxruntime")
    assert choose(["onnxruntime", "eager", "onnxruntime"], None, 1).names == ("eager", "onnxruntime")
    assert choose(["onnxruntime"], None, 1).backends == ("onnxruntime",)


@pytest.mark.parametrize(
    ("asked", "device", "sentence"),
    [
        (["magic"], None, "backend 'magic' is none of eager, torch.compile, onnxruntime"),
        ([], None, "one or more names"),
        (["all", "eager"], None, "or 'all' alone"),
        (["eager"], "tpu", "device 'tpu' is none of cpu, cuda"),
        (["tensorrt-rtx"], "cpu", "tensorrt-rtx runs on a GPU"),
    ],
)
def test_what_is_no_column_is_refused(asked: list[str], device: str | None, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        choose(asked, device, 1)


@WITHOUT_GPU
@pytest.mark.parametrize("asked", [["tensorrt"], ["tensorrt-rtx"]])
def test_what_needs_a_gpu_is_refused_without_one(asked: list[str]) -> None:
    with pytest.raises(EnvironmentProblem, match=r"device 'cuda' needs|finds no GPU"):
        choose(asked, None, 1)


@WITHOUT_GPU
def test_all_takes_what_is_there_and_says_what_is_not() -> None:
    found = choose(["all"], None, 1)
    assert found.device == "cpu"
    assert found.names[0] == "eager"
    assert "onnxruntime" in found.names
    assert {s.split(" ")[0] for s in found.left_out} == set(columns.COLUMNS) - set(found.names)
    assert (
        "tensorrt is left out: tensorrt runs on a GPU: ask for device 'cuda', or leave tensorrt out" in found.left_out
    )


def test_torch_compile_without_a_compiler_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(EnvironmentProblem, match="needs a C\\+\\+ compiler on the CPU: install g"):
        choose(["torch.compile"], "cpu", 1)
    assert any("C++ compiler" in sentence for sentence in choose(["all"], "cpu", 1).left_out)


@dataclass
class Machine:
    """A machine with a GPU, of host memory: every backend is made by ``make_backend`` itself."""

    bundle: Path
    tensorrt: HostTensorRT

    def build(self, flavor: str, *batch_sizes: int) -> None:
        write_target(open_bundle(self.bundle), self.tensorrt, flavor, batch_sizes)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    device = HostDevice()
    ort, trt = HostOnnxRuntime(device), HostTensorRT(device)

    def opened(ordinal: int) -> Any:
        return device

    def on_device(kind: Any, **libraries: Any) -> Any:
        return lambda *given: kind(*given, open_device=opened, **libraries)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(columns, "lacking_cuda", lambda: None)
    monkeypatch.setattr(onnxruntime_cuda, "OnnxRuntimeCuda", on_device(OnnxRuntimeCuda, ort=ort))
    monkeypatch.setattr(execute, "TensorRT", on_device(TensorRT, load_library=trt.load))
    monkeypatch.setattr(execute, "TensorRTRTX", on_device(TensorRTRTX, load_library=trt.load))
    return Machine(bundles.write_bundle(tmp_path / "a", aligned_plan()), trt)


@pytest.mark.parametrize("column", columns.BACKENDS)
def test_a_bundle_runs_on_a_gpu_whatever_the_threads_are(machine: Machine, column: str) -> None:
    """They are of eager PyTorch's passes; backends on a GPU refuse any."""
    if column != "onnxruntime":
        machine.build(column, 1)
    found = choose([column], "cuda", 2, [machine.bundle])
    assert found.names == ("eager", column)
    plan = open_bundle(machine.bundle).manifest.plan
    opener = Opener(Path(), Path(), found.device, 2, 1, plan)
    run = opener.open(Spec("a", plan, "fp32", machine.bundle, column=column)).run(Ask((1,), 5, 1.5, 0.9, 1.0))
    task = {"bundle": machine.bundle, "column": column, "device": "cuda", "threads": 2, "labels": [1], "seed": 5}
    pipeline, measured = child._bundle(task)()  # type: ignore[misc]
    assert pipeline.backend.device == "cuda"
    assert np.array_equal(run.pictures, measured.floats)


def test_a_tensorrt_without_engines_of_a_bundle_is_left_out(machine: Machine) -> None:
    found = choose(["all"], None, 1, [machine.bundle])
    assert found.device == "cuda"
    assert found.backends == ("onnxruntime",)
    (sentence,) = (s for s in found.left_out if s.startswith("tensorrt-rtx is"))
    assert f"nextscale build {machine.bundle} --flavor tensorrt-rtx --target sm86" in sentence
    with pytest.raises(BackendError, match="has no target tensorrt-sm86-fp32"):
        choose(["tensorrt"], None, 1, [machine.bundle])


def test_a_tensorrt_for_another_number_of_pictures_is_left_out(machine: Machine) -> None:
    machine.build("tensorrt", 1)
    machine.build("tensorrt-rtx", 1, 4)
    found = choose(["all"], None, 1, [machine.bundle], batch=4)
    assert found.backends == ("onnxruntime", "tensorrt-rtx")
    (sentence,) = (s for s in found.left_out if s.startswith("tensorrt is"))
    assert "batch sizes [4] were asked for" in sentence
    assert "--batch 1,4" in sentence
    with pytest.raises(InputError, match=r"built for \[1\]"):
        choose(["tensorrt"], None, 1, [machine.bundle], batch=4)
    assert choose(["tensorrt"], None, 1, [machine.bundle], batch=1).backends == ("tensorrt",)


def test_every_error_is_one_a_user_can_meet() -> None:
    for name in columns.COLUMNS:
        assert (why := columns.lacking(name, "cuda")) is None or why
    with pytest.raises(NextscaleError):
        choose(["torch.compile", "magic"], None, 1)


def test_a_bundle_is_a_side_of_every_backend_and_eager_is_compiled_for_every_plan(tmp_path: Path) -> None:
    path = bundles.write_bundle(tmp_path / "a")
    every = columns.Columns(("eager", "torch.compile", "onnxruntime", "tensorrt"), "cuda")
    specs, _ = make_specs([path], every)
    assert [(s.name, s.column, s.reference) for s in specs] == [
        ("eager full", "eager", None),
        ("eager as a", "eager", None),
        ("torch.compile full", "torch.compile", "eager full"),
        ("torch.compile as a", "torch.compile", "eager as a"),
        ("a onnxruntime", "onnxruntime", "eager as a"),
        ("a tensorrt", "tensorrt", "eager as a"),
    ]
    assert [s.bundle for s in specs] == [None] * 4 + [path] * 2
