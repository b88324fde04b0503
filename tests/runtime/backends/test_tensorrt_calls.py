"""Engines as calls, on doubles of the GPU and of TensorRT: captured or not, with lent arrays, and at their end."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.host_cuda import HostDevice, HostStream, Record

from nextscale.runtime import Pipeline, Result
from nextscale.runtime.backends.tensorrt import execute
from nextscale.runtime.errors import BackendError

GRAPHS = ("begin", "step_00", "step_01", "step_02", "step_03", "decode")
TAKES = ("allocate", "pin", "free", "stream", "load")  # whatever a device gives


def new(device: HostDevice, action: Callable[[], Any]) -> tuple[Any, list[Record]]:
    """What an action gives, and what it asked of the device."""
    start = len(device.log)
    result = action()
    return result, device.log[start:]


def equal(a: Result, b: Result) -> bool:
    return np.array_equal(a.floats, b.floats) and all(map(np.array_equal, a.tokens, b.tokens))


def test_a_context_is_in_one_graph_only(gpu: Any, reference: Any) -> None:
    """The double refuses a second capture of a context: streaming and whole pictures have contexts of their own."""
    gpu.build()
    pipeline = gpu.open(batch_sizes=(1,))
    for seed in range(3):
        list(pipeline.stream([0], seed=seed))
        assert equal(pipeline.generate([0], seed=seed), reference([0], seed=seed))
    assert max(context.captures for context in gpu.tensorrt.contexts) == 1


@pytest.mark.parametrize("graph", ["begin", "step_02", "decode"])
def test_a_refused_enqueue_raises(gpu: Any, graph: str) -> None:
    """At opening, and where graphs are launched one by one, later too."""
    gpu.build("tensorrt-rtx")
    gpu.tensorrt.refuses = {graph}
    with pytest.raises(BackendError, match=f"TensorRT does not run {graph}"):
        gpu.open("tensorrt-rtx")
    assert not [block for block in gpu.device.blocks.values() if block.kind == "device"]
    gpu.tensorrt.refuses, gpu.tensorrt.uncapturable = set(), {graph}
    pipeline = gpu.open("tensorrt-rtx")
    gpu.tensorrt.refuses = {graph}
    with pytest.raises(BackendError, match=f"TensorRT does not run {graph}"):
        pipeline.generate([0], seed=0)
    gpu.tensorrt.refuses = set()
    assert len(pipeline.generate([0], seed=0)) == 1


@pytest.mark.parametrize("graph", ["begin", "step_02", "decode"])
def test_a_capture_that_fails_leaves_calls_that_run(
    gpu: Any, reference: Any, caplog: pytest.LogCaptureFixture, graph: str
) -> None:
    gpu.build()
    gpu.tensorrt.refuses_capture = {graph}
    with caplog.at_level(logging.WARNING, "nextscale.runtime"):
        pipeline = gpu.open()
    assert caplog.text.count(f"could not be captured: TensorRT does not run {graph}") == 1
    for seed in range(3):
        assert equal(pipeline.generate([0, 2, 1], seed=seed), reference([0, 2, 1], seed=seed))
    tokens = [step.tokens for step in pipeline.stream([1], seed=4)]
    assert all(map(np.array_equal, tokens, reference([1], seed=4).tokens))


def test_what_is_refused_after_a_capture_failed_raises(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.build()
    tries: list[int] = []

    def fail(*_: Any, **__: Any) -> None:
        gpu.tensorrt.refuses = {"step_02"}
        tries.append(1)
        raise BackendError("nothing is captured")

    monkeypatch.setattr(execute, "record", fail)
    with pytest.raises(BackendError, match="TensorRT does not run step_02"):
        gpu.open()
    assert tries == [1]
    assert not [block for block in gpu.device.blocks.values() if block.kind == "device"]


def test_what_cannot_be_captured_is_launched_graph_by_graph(
    gpu: Any, reference: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.build("tensorrt-rtx")
    gpu.tensorrt.uncapturable = {"step_01"}
    with caplog.at_level(logging.WARNING, "nextscale.runtime"):
        pipeline = gpu.open("tensorrt-rtx", batch_sizes=(1,))
    assert caplog.text.count("step_01 cannot be captured into a CUDA graph") == 1
    for seed in range(3):
        _, asked = new(gpu.device, lambda seed=seed: pipeline.generate([0], seed=seed))
        assert [record[1] for record in asked if record[0] == "enqueue"] == list(GRAPHS)
        assert not [record for record in asked if record[0] == "graph"]
        assert equal(pipeline.generate([0], seed=seed), reference([0], seed=seed))


def test_a_callers_arrays_share_one_context(gpu: Any, reference: Any) -> None:
    """Whatever the addresses: it is made at the first, takes no memory, and is part of no capture."""
    gpu.build()
    pipeline = gpu.open(batch_sizes=(1,))
    chain, before = pipeline._slots._free[0].fitting(0), len(gpu.tensorrt.contexts)
    outs = [aligned_zeros((1, 3, *pipeline.manifest.plan.image_size)) for _ in range(12)]
    for out in outs:
        gpu.device.lend(out)
    for out in [*outs, *outs]:  # more than a slot remembers
        out[...] = 0
        _, asked = new(gpu.device, lambda out=out: lent(pipeline, chain, out))
        assert not [record for record in asked if record[0] in (*TAKES, "capture")]
        assert np.array_equal(out.transpose(0, 2, 3, 1), reference([2], seed=5).floats)
    assert len(gpu.tensorrt.contexts) == before + 1
    assert gpu.tensorrt.contexts[-1].captures == 0


def aligned_zeros(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Zeros float32, at a multiple of 256."""
    size = int(np.prod(shape)) * 4
    raw = np.zeros(size + 256, np.uint8)
    start = -raw.ctypes.data % 256
    return raw[start : start + size].view(np.float32).reshape(shape)


def lent(pipeline: Pipeline, chain: Any, out: np.ndarray[Any, Any]) -> None:
    pipeline.generate([2], seed=5)
    chain.decode(chain.last, 1, {"image.out": out.ctypes.data})
    chain.slot.memory.wait()


def test_closing_gives_all_memory_back(gpu: Any) -> None:
    gpu.build()
    pipeline = gpu.open(slots=2)
    pipeline.generate([0], seed=0)
    pipeline.close()
    assert not [block for block in gpu.device.blocks.values() if block.kind == "device"]


def test_results_that_outlive_a_pipeline_keep_no_context(gpu: Any) -> None:
    """A step's result knows its pass, and so its calls; what is asked of the device is done before anything goes."""
    gpu.build()
    pipeline = gpu.open()
    steps = list(pipeline.stream([0], seed=0))
    contexts = [weakref.ref(context) for context in gpu.tensorrt.contexts]
    gpu.tensorrt.contexts.clear()
    _, asked = new(gpu.device, pipeline.close)
    assert not [context for context in contexts if context() is not None]
    kinds = [record[0] for record in asked]
    assert kinds.index("wait") < kinds.index("free")
    assert len(steps) == 4


def test_a_lost_device_is_left(gpu: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    gpu.build()
    pipeline = gpu.open(slots=2)

    def wait(_: Any) -> None:
        raise BackendError("CUDA cannot finish what it was asked for: CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(HostStream, "wait", wait)
    with caplog.at_level(logging.WARNING, "nextscale.runtime"):
        pipeline.close()
    assert caplog.text.count("while closing: CUDA cannot finish") == 2
    assert not [block for block in gpu.device.blocks.values() if block.kind == "device"]


def test_what_is_held_once_is_told_before_it_is_taken(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.build()

    def allocate(size: int) -> Any:
        raise BackendError("CUDA cannot take them: CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(gpu.device, "allocate", allocate)
    for flavor in ("tensorrt", "onnxruntime"):
        caplog.clear()
        with caplog.at_level(logging.INFO, "nextscale.runtime"), pytest.raises(BackendError, match="CUDA cannot take"):
            gpu.open(flavor)
        assert re.search(r"held once: weights \d+\.\d MB", caplog.text)
