"""Packed targets that are not run: made of or for something else, damaged, unreadable, or not to be checked here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from support.packed import edit

from nextscale.runtime import Pipeline
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.backends.packed.target import WEIGHTS
from nextscale.runtime.errors import BackendError

Edit = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(library_version="1.0"), "ONNX Runtime: 1.0 then, "),
        (lambda data: data.update(instructions="mmx"), "the processor's instructions: mmx then, "),
        (lambda data: data.update(precision="fp16"), "the precision: fp16 then, fp32 now"),
        (lambda data: data.update(weights_sha256="0" * 64), "the weights: 000000000000 then, "),
        (lambda data: data["graphs"].pop(), "the graphs decode"),
    ],
)
def test_one_that_was_made_for_something_else_is_not_run(
    own_packed: Path, own_target: Path, change: Edit, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    edit(own_target, change)
    with Pipeline.open(own_packed, threads=1) as pipeline:
        assert pipeline.memory.weights == (own_packed / "weights.safetensors").stat().st_size
    (line,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert says in line
    assert f"`nextscale build {own_packed} --flavor onnxruntime-cpu --force` packs it anew" in line
    with pytest.raises(BackendError, match=r"was packed for something else \("):
        Pipeline.open(own_packed, OnnxRuntime(packed=True))


@pytest.mark.parametrize("file", [WEIGHTS, "step_02.onnx"])
@pytest.mark.parametrize("kind", ["a bit", "the end", "all", "a link"])
def test_a_damaged_one_is_refused(own_packed: Path, own_target: Path, file: str, kind: str) -> None:
    path = own_target / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    match kind:
        case "a bit":
            path.write_bytes(data)
            with Pipeline.open(own_packed, OnnxRuntime(verify="size")) if file == WEIGHTS else nullcontext():
                pass  # as asked
        case "the end":
            path.write_bytes(data[:-1])
        case "all":
            path.unlink()
        case "a link":
            path.rename(own_target.parent / "moved")
            path.symlink_to(own_target.parent / "moved")
    with pytest.raises(BackendError, match=rf"{file} .*--force` packs it anew"):
        Pipeline.open(own_packed)


def test_without_its_package_weights_are_not_checked_in_silence(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    with pytest.raises(BackendError, match=r"blake3, which does not import here .*: pip install blake3"):
        Pipeline.open(packed, threads=1)
    with Pipeline.open(packed, OnnxRuntime(threads=1, verify="size"), verify="size"):
        pass  # as asked


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(schema_version=1), "this nextscale reads 2, found 1"),
        (lambda data: data.update(flavor="tensorrt"), "expected onnxruntime-cpu"),
        (lambda data: data.update(colour="red"), "colour: unknown key"),
        (lambda data: data["graphs"][0].update(file="../begin.onnx"), "is not a plain file name"),
        (lambda data: data["graphs"][0].update(file=WEIGHTS), "is no graph"),
        (lambda data: data["graphs"][1].update(graph="begin"), "a graph stands twice"),
        (lambda data: data["weights"].update(blake3="0"), "64 lower-case hex digits"),
    ],
)
def test_a_manifest_that_is_none_is_refused(own_packed: Path, own_target: Path, change: Edit, says: str) -> None:
    edit(own_target, change)
    with pytest.raises(BackendError, match="was packed for something else") as caught:
        Pipeline.open(own_packed, OnnxRuntime(packed=True))
    assert says in str(caught.value)
    with Pipeline.open(own_packed, threads=1) as pipeline:
        assert pipeline.memory.weights == (own_packed / "weights.safetensors").stat().st_size
