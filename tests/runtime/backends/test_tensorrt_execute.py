"""Engines through a pipeline, on doubles of the GPU and of TensorRT: the same pictures, in the right order of work.

``tests/support/host_cuda.py`` says what this can show and what it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.host_cuda import HostDevice, Record

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline, Result
from nextscale.runtime.backends.tensorrt.execute import Engines, TensorRT
from nextscale.runtime.errors import BackendError, NonFiniteError

GRAPHS = ("begin", "step_00", "step_01", "step_02", "step_03", "decode")
FLAVORS = ("tensorrt", "tensorrt-rtx")
TAKES = ("allocate", "pin", "free", "stream", "load")  # whatever a device gives


def new(device: HostDevice, action: Callable[[], Any]) -> tuple[Any, list[Record]]:
    """What an action gives, and what it asked of the device."""
    start = len(device.log)
    result = action()
    return result, device.log[start:]


def equal(a: Result, b: Result) -> bool:
    return np.array_equal(a.floats, b.floats) and all(map(np.array_equal, a.tokens, b.tokens))


@pytest.mark.parametrize("flavor", FLAVORS)
def test_pictures_and_tokens_are_those_of_onnx_runtime(gpu: Any, reference: Any, flavor: str) -> None:
    """Three calls, all replayed; other seeds, labels and settings each time."""
    gpu.build(flavor)
    pipeline = gpu.open(flavor)
    for seed, guidance in ((1, 1.5), (2, 3.0), (2**40 + 3, 0.0)):
        request: dict[str, Any] = {"seed": seed, "guidance_scale": guidance, "first_image": 5}
        assert equal(pipeline.generate([0, None, 2], **request), reference([0, None, 2], **request))


def test_streamed_steps_and_previews_are_those_of_onnx_runtime(gpu: Any, aligned: Path) -> None:
    gpu.build()
    pipeline = gpu.open()
    with Pipeline.open(aligned, threads=1) as other:
        for seed in (3, 4, 5):
            for ours, theirs in zip(pipeline.stream([1, 0], seed=seed), other.stream([1, 0], seed=seed), strict=True):
                assert np.array_equal(ours.tokens, theirs.tokens)
                assert np.array_equal(ours.logits(), theirs.logits())
                assert np.array_equal(ours.preview(), theirs.preview())


def test_all_memory_is_taken_at_open(gpu: Any) -> None:
    """Weights, one block and one scratch block for each slot, and what the host sees of it."""
    gpu.build()
    pipeline = gpu.open(slots=2)
    sizes = [size for _, size in gpu.device.asked("allocate")]
    assert sorted(sizes) == sorted([pipeline.memory.fixed["weights"], *[sum_of(pipeline), pipeline.memory.scratch] * 2])
    _, asked = new(gpu.device, lambda: [pipeline.generate([0], seed=s) for s in range(4)])
    assert not [record for record in asked if record[0] in TAKES]
    # The double's contexts and graphs take nothing; between buffers lies what aligns them.
    assert pipeline.memory.taken == 2 * (sum_of(pipeline) - sum(pipeline.memory.slot.values()))
    assert pipeline._slots._free[0].fitting(0)._loaded.free_memory() == gpu.device.memory_info()[0]
    _, asked = new(gpu.device, lambda: [list(pipeline.stream([0, 1], seed=s)) for s in range(4)])
    assert not [record for record in asked if record[0] in TAKES]


def sum_of(pipeline: Pipeline) -> int:
    """Bytes of a slot's block; causes are the buffers, and between them lies what aligns them."""
    return int(pipeline._slots._free[0].slot.layout.size)


def test_scratch_is_the_largest_need_and_not_the_sum(gpu: Any) -> None:
    gpu.build()
    assert gpu.open(batch_sizes=(1,)).memory.scratch == 5000  # of step_02, for one picture
    assert gpu.open().memory.scratch == 10000


def test_every_context_works_on_the_slots_scratch(gpu: Any) -> None:
    gpu.build()
    gpu.open()
    needed = [c for c in gpu.tensorrt.contexts if c.engine.name in ("begin", "step_00", "step_02", "decode")]
    assert len({c.memory for c in needed}) == 1
    # Whole pictures have contexts of their own; decode reads either buffer of the code sum.
    assert len(gpu.tensorrt.contexts) == 2 * (len(GRAPHS) + len(GRAPHS) + 1)


def test_a_picture_is_one_copy_in_one_graph_and_copies_out(gpu: Any) -> None:
    """From the first call on: all was run and captured when the pipeline was opened."""
    gpu.build()
    pipeline, opening = new(gpu.device, lambda: gpu.open(batch_sizes=(1,)))
    first = [record[0] for record in opening].index("capture")
    assert [record[2] for record in opening[first:] if record[:2] == ("captured", "enqueue")][:6] == list(GRAPHS)
    assert [record[1] for record in opening[:first] if record[0] == "enqueue"] == [*GRAPHS, "decode"]
    for _ in range(3):
        _, later = new(gpu.device, lambda: pipeline.generate([2], seed=2))
        assert [record[0] for record in later if record[0] != "wait"] == ["upload", "graph", "download", "download"]


def test_a_streamed_step_is_one_graph(gpu: Any) -> None:
    gpu.build()
    pipeline = gpu.open()
    _, asked = new(gpu.device, lambda: list(pipeline.stream([1], seed=1)))
    assert [record[0] for record in asked].count("graph") == len(GRAPHS) - 1  # no preview was asked for
    assert not [record for record in asked if record[0] in ("enqueue", "launch", "captured")]


def test_two_slots_do_not_touch_each_other(gpu: Any, reference: Any) -> None:
    gpu.build()
    pipeline = gpu.open(slots=2)
    for seed in range(3):
        held = pipeline.stream([2], seed=100 + seed)
        next(held)
        assert equal(pipeline.generate([1], seed=seed), reference([1], seed=seed))
        last = list(held)[-1]
        assert np.array_equal(last.tokens, reference([2], seed=100 + seed).tokens[-1])


def test_broken_weights_are_seen_although_nothing_waits(gpu: Any) -> None:
    gpu.build()
    pipeline = gpu.open(batch_sizes=(1,))
    arena = next(b for b in gpu.device.blocks.values() if b.size == pipeline.memory.fixed["weights"])
    arena.raw.view(np.float32)[:] = np.nan
    for _ in range(3):
        with pytest.raises(NonFiniteError, match=r"logits\.out of step_00 holds NaN or infinity"):
            pipeline.generate([0], seed=0)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_without_a_target_the_command_is_named(gpu: Any) -> None:
    with pytest.raises(BackendError, match=r"nextscale build .*tiny --flavor tensorrt --target sm86"):
        gpu.open()


@pytest.mark.parametrize(
    ("field", "value"), [("library_version", "10.9.0"), ("target", "sm89"), ("flavor", "tensorrt-rtx")]
)
def test_engines_of_another_machine_are_not_deserialised(gpu: Any, field: str, value: str) -> None:
    """A manifest in the right folder that says something else."""
    folder = gpu.build()
    data = json.loads((folder / "target.json").read_text())
    (folder / "target.json").write_text(json.dumps({**data, field: value}))
    with pytest.raises(BackendError, match=rf"{field} .*{value}.*nextscale build"):
        gpu.open()
    assert not gpu.tensorrt.deserialized


def test_altered_and_truncated_engines_are_not_deserialised(gpu: Any) -> None:
    engine = gpu.build() / "step_01.engine"
    content = engine.read_bytes()
    for broken in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        engine.write_bytes(broken)
        with pytest.raises(BackendError, match=r"step_01\.engine .*nextscale build .*--force"):
            gpu.open()
    assert not gpu.tensorrt.deserialized


def test_batch_sizes_that_were_not_built(gpu: Any) -> None:
    gpu.build(batch_sizes=(1, 2))
    with pytest.raises(InputError, match=r"batch sizes \[8\] .*--batch 1,2,8 --restore function`"):
        gpu.open(batch_sizes=(1, 8))


def test_an_engine_that_the_library_does_not_take(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.build()
    monkeypatch.setattr(gpu.tensorrt, "deserialize_cuda_engine", lambda _: None)
    with pytest.raises(BackendError, match=r"does not accept the engine .*begin\.engine"):
        gpu.open()


def test_an_engine_of_another_graph(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = gpu.build()
    content = (folder / "step_01.engine").read_bytes()
    real = gpu.tensorrt.deserialize_cuda_engine
    monkeypatch.setattr(gpu.tensorrt, "deserialize_cuda_engine", lambda _: real(content))
    with pytest.raises(BackendError, match=r"begin\.engine is no engine of begin"):
        gpu.open()


def test_weights_inside_need_no_arena(gpu: Any, reference: Any) -> None:
    gpu.build(weights="embedded", weights_sha256=gpu.bundle.manifest.files["weights.safetensors"].sha256)
    pipeline = gpu.open(batch_sizes=(1,))
    assert set(pipeline.memory.fixed) == {"engines"}
    for seed in range(3):
        assert equal(pipeline.generate([2], seed=seed), reference([2], seed=seed))


def test_weights_outside_of_an_engine_that_has_them_inside(gpu: Any) -> None:
    """A target whose manifest was changed by hand."""
    folder = gpu.build()
    data = json.loads((folder / "target.json").read_text())
    changed = {"weights": "embedded", "weights_sha256": gpu.bundle.manifest.files["weights.safetensors"].sha256}
    (folder / "target.json").write_text(json.dumps({**data, **changed}))
    with pytest.raises(BackendError, match=r"asks for the weights \('var/class_emb\.weight',\)"):
        gpu.open()


def test_addresses_that_tensorrt_does_not_take(gpu: Any) -> None:
    """The tiny bundle's tapes have rows of 64 bytes; here an output is lent that starts off the grid."""
    gpu.build()
    pipeline = gpu.open()
    engines = pipeline._slots._free[0].fitting(0)._loaded
    assert isinstance(engines, Engines)
    chain = pipeline._slots._free[0].fitting(0)
    with pytest.raises(BackendError, match=r"image\.out of decode would lie at 0x.*multiples of 256"):
        chain.decode(chain.last, 1, {"image.out": chain.slot.memory.address + 16})


def test_too_little_memory_says_how_much_there_is(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.build()

    def allocate(size: int) -> Any:
        raise BackendError(f"CUDA cannot take {size:,} bytes")

    monkeypatch.setattr(gpu.device, "allocate", allocate)
    with pytest.raises(BackendError, match="CUDA cannot take"):
        gpu.open()


@pytest.mark.parametrize("device", ["cpu", "cuda:", "cuda:-1", "cuda:x", "gpu", None, 0])
def test_devices_that_are_none(gpu: Any, device: Any) -> None:
    with pytest.raises(InputError, match="runs on 'cuda' or 'cuda:1' and the like"):
        TensorRT(device, load_library=gpu.tensorrt.load, open_device=lambda _: gpu.device)


def test_the_number_of_a_device_reaches_cuda(gpu: Any) -> None:
    asked: list[int] = []
    TensorRT("cuda:3", load_library=gpu.tensorrt.load, open_device=lambda n: asked.append(n) or gpu.device)  # type: ignore[func-returns-value]
    assert asked == [3]
