"""Which columns there are on a machine, and what is said of those that are not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import bundles

from nextscale.compare import columns
from nextscale.compare.columns import choose
from nextscale.compare.lineup import make_specs
from nextscale.plan.errors import EnvironmentProblem, InputError, NextscaleError
from nextscale.runtime.backends import Backend, make_backend
from nextscale.runtime.backends.tensorrt.execute import TensorRT, TensorRTRTX
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


def test_a_tensorrt_without_engines_of_a_bundle_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU host would say; nothing of CUDA is asked."""

    def make(name: str, device: str | None = None, threads: int | None = None) -> Backend:
        if name == "onnxruntime":
            return make_backend(name, "cpu", threads)
        gpu, library = SimpleNamespace(sm="sm86"), SimpleNamespace(version="1")
        return {"tensorrt": TensorRT, "tensorrt-rtx": TensorRTRTX}[name](
            open_device=lambda ordinal: gpu,  # type: ignore[arg-type, return-value]
            load_library=lambda flavor: library,  # type: ignore[arg-type, return-value]
        )

    monkeypatch.setattr(columns, "make_backend", make)
    monkeypatch.setattr(columns, "lacking_cuda", lambda: None)
    path = bundles.write_bundle(tmp_path / "a")
    found = choose(["all"], None, 1, [path])
    assert found.device == "cuda"
    assert found.backends == ("onnxruntime",)
    (sentence,) = (s for s in found.left_out if s.startswith("tensorrt-rtx is"))
    assert f"nextscale build {path} --flavor tensorrt-rtx --target sm86" in sentence
    with pytest.raises(BackendError, match="has no target tensorrt-sm86-fp32"):
        choose(["tensorrt"], None, 1, [path])


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
