"""ONNX Runtime's CUDA provider: lifted graphs compute the same, and the backend asks for the right things.

The provider itself needs a GPU; ``tests/support/host_onnxruntime.py`` says what its double can show.
"""

from __future__ import annotations

import logging
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from nextscale.runtime import Pipeline
from nextscale.runtime.backends import make_backend
from nextscale.runtime.backends.onnxruntime_slot import SlotSessions, provider_options
from nextscale.runtime.backends.tensorrt.lift import external_weights, lift_weights, read_graph
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError

GRAPHS = ("begin", "step_00", "step_01", "step_02", "step_03", "decode")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_lifted_session_computes_the_very_same(aligned: Path, name: str) -> None:
    """On the CPU provider, weights bound by their address as the arena's are."""
    from safetensors.numpy import load_file

    bundle = open_bundle(aligned)
    graph, weights = bundle.manifest.graph(name), load_file(aligned / "weights.safetensors")
    path, rng = bundle.path(graph.file), np.random.default_rng(7)
    given: dict[str, Any] = {}
    for tensor in graph.inputs:
        shape = tensor.concrete(2, bundle.manifest.guidance_rows)
        numbers = rng.integers(0, 3, shape) if tensor.dtype == "int32" else rng.uniform(0.1, 0.9, shape)
        given[tensor.name] = numbers.astype(tensor.dtype)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    plain = onnxruntime.InferenceSession(path, options, providers=providers)
    lifted = onnxruntime.InferenceSession(lift_weights(path).SerializeToString(), options, providers=providers)
    used = {weight: weights[weight] for weight in external_weights(read_graph(path))}
    binding = lifted.io_binding()
    for key, array in {**given, **used}.items():
        binding.bind_input(key, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for tensor in graph.outputs:
        binding.bind_output(tensor.name, "cpu")
    lifted.run_with_iobinding(binding)
    wanted = plain.run([tensor.name for tensor in graph.outputs], given)
    assert all(map(np.array_equal, binding.copy_outputs_to_cpu(), wanted))


def test_pictures_and_tokens_are_those_of_the_cpu(gpu: Any, reference: Any) -> None:
    pipeline = gpu.open("onnxruntime", batch_sizes=(1, 2))
    for seed in (1, 2, 3):
        ours, theirs = (make([0, None, 2], seed=seed, guidance_scale=2.0) for make in (pipeline.generate, reference))
        assert np.array_equal(ours.floats, theirs.floats)
        assert all(map(np.array_equal, ours.tokens, theirs.tokens))
    steps = [step.tokens for step in pipeline.stream([1], seed=9)]
    assert all(map(np.array_equal, steps, reference([1], seed=9).tokens))


def test_nothing_waits_or_is_taken_between_the_first_step_and_the_last(gpu: Any) -> None:
    """Warm-up and capture belong to opening; a picture is one copy, replays and kernels, and copies out."""
    pipeline = gpu.open("onnxruntime", batch_sizes=(1,))
    sizes = [size for _, size in gpu.device.asked("allocate")]
    assert len(sizes) == 2  # weights once, the slot
    assert sizes[0] == pipeline.memory.fixed["weights"]
    assert pipeline.memory.scratch is None
    start = len(gpu.device.log)
    pipeline.generate([1], seed=0)
    asked = gpu.device.log[start:]
    kinds = [record[0] for record in asked]
    assert [record[1] for record in asked if record[0] == "replay"] == list(GRAPHS)
    assert set(kinds) == {"upload", "replay", "launch", "download", "wait"}
    assert kinds.count("upload") == 1
    assert kinds.index("wait") > max(i for i, kind in enumerate(kinds) if kind in ("replay", "launch"))


def test_sessions_stay_in_the_thread_of_their_slot(gpu: Any, reference: Any) -> None:
    """The double refuses any other thread: ONNX Runtime's handles and captured graphs are a thread's own."""
    pipeline = gpu.open("onnxruntime", batch_sizes=(1,))
    made: list[Any] = []
    workers = [threading.Thread(target=lambda: made.append(pipeline.generate([2], seed=4))) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(made) == 3
    assert all(np.array_equal(result.floats, reference([2], seed=4).floats) for result in made)


def test_a_session_for_each_batch_size_with_its_shapes_fixed(gpu: Any) -> None:
    gpu.open("onnxruntime", batch_sizes=(1, 2))
    assert len(gpu.onnxruntime.sessions) == 2 * len(GRAPHS)
    shapes = {tuple(s.get_inputs()[0].shape) for s in gpu.onnxruntime.sessions if s.name == "begin"}
    assert shapes == {(1,), (2,)}


def test_where_the_provider_refuses_to_capture_it_goes_on_without(
    gpu: Any, reference: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.onnxruntime.uncapturable = {"step_01"}
    with caplog.at_level(logging.WARNING, "nextscale.runtime"):
        pipeline = gpu.open("onnxruntime", batch_sizes=(1,))
    lines = [r.message for r in caplog.records if "without a CUDA graph of its own" in r.message]
    assert len(lines) == 1
    assert lines[0].startswith("step_01 runs without")
    start = len(gpu.device.log)
    assert np.array_equal(pipeline.generate([0], seed=1).floats, reference([0], seed=1).floats)
    asked = gpu.device.log[start:]
    assert [record[1] for record in asked if record[0] == "session"] == ["step_01"]


def test_a_callers_array_is_written_and_not_captured(gpu: Any, reference: Any) -> None:
    pipeline = gpu.open("onnxruntime", batch_sizes=(1,))
    chain = pipeline._slots._free[0].fitting(0)
    out = np.zeros((1, 3, *pipeline.manifest.plan.image_size), np.float32)
    gpu.device.lend(out)
    pipeline.generate([2], seed=5)
    start = len(gpu.device.log)
    chain.decode(chain.last, 1, {"image.out": out.ctypes.data})
    chain.slot.memory.wait()
    assert ("session", "decode") in gpu.device.log[start:]
    assert gpu.device.log[start:].count(("wait",)) == 1  # ours; binding a caller's array waits for nothing
    assert np.array_equal(out.transpose(0, 2, 3, 1), reference([2], seed=5).floats)


def test_what_the_provider_is_told() -> None:
    options = provider_options(1, 0x7F00, captured=True)
    assert (options["device_id"], options["user_compute_stream"], options["enable_cuda_graph"]) == ("1", "32512", "1")
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert all(type(value) is str for value in options.values())
    assert provider_options(0, 1, captured=False)["enable_cuda_graph"] == "0"


def test_the_installed_onnx_runtime_has_what_is_called() -> None:
    """The provider is not in the CPU's package; the calls around it are."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.add_free_dimension_override_by_name("rows", 2)
    run = onnxruntime.RunOptions()
    run.add_run_config_entry("disable_synchronize_execution_providers", "1")
    assert callable(onnxruntime.preload_dlls)
    assert hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
    assert {"op_type", "name"} <= {*dir(onnxruntime.OrtEpAssignedNode)}
    assert {"ep_name", "get_nodes"} <= {*dir(onnxruntime.OrtEpAssignedSubgraph)}


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_provider_whose_libraries_are_missing(gpu: Any) -> None:
    gpu.onnxruntime.loads = False
    with pytest.raises(BackendError, match=r"has the CUDAExecutionProvider, and it does not load \(no reason"):
        gpu.open("onnxruntime")


def test_the_library_that_a_provider_misses_is_named(gpu: Any, tmp_path: Path) -> None:
    """A provider's library that the system's loader refuses, with its reason."""
    gpu.onnxruntime.loads, gpu.onnxruntime.__file__ = False, str(tmp_path / "__init__.py")
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi/libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    with pytest.raises(
        BackendError, match=r"does not load \(.*libonnxruntime_providers_cuda\.so.*\): it needs CUDA 13"
    ):
        gpu.open("onnxruntime")


def test_nodes_that_fall_back_to_the_cpu(gpu: Any) -> None:
    gpu.onnxruntime.fallen = {"step_02": ("Mod", "NonZero")}
    with pytest.raises(BackendError, match=r"run 2 nodes of step_02 on the CPU: Mod \(Mod_1\), NonZero \(NonZero_1\)"):
        gpu.open("onnxruntime")


def test_nodes_on_the_cpu_where_they_are_allowed(gpu: Any, caplog: pytest.LogCaptureFixture) -> None:
    """ONNX Runtime refuses to make a session that captures, where nodes are not on CUDA: one is made that does not."""
    gpu.onnxruntime.fallen = {"step_02": ("Mod",)}
    backend = gpu.backend("onnxruntime")
    backend.cpu_nodes = True
    with Pipeline.open(gpu.bundle.folder, backend, batch_sizes=(1,)) as pipeline:
        start = len(gpu.device.log)
        assert len(pipeline.generate([0], seed=0)) == 1
    assert [record[1] for record in gpu.device.log[start:] if record[0] == "session"] == ["step_02"]
    assert caplog.text.count("step_02 runs without a CUDA graph of its own") == 1


def test_closing_ends_sessions_in_their_thread_whoever_has_their_calls(gpu: Any) -> None:
    pipeline = gpu.open("onnxruntime")
    steps = list(pipeline.stream([0], seed=0))
    threads: list[int] = []
    sessions = [weakref.ref(s, lambda _: threads.append(threading.get_ident())) for s in gpu.onnxruntime.sessions]
    (owner,) = {session.thread for session in gpu.onnxruntime.sessions}
    gpu.onnxruntime.sessions.clear()
    pipeline.close()
    assert not [session for session in sessions if session() is not None]
    assert {*threads} == {owner}
    assert len(steps) == 4
    assert not [block for block in gpu.device.blocks.values() if block.kind == "device"]


def test_sessions_do_not_keep_the_memory_of_their_slot(gpu: Any) -> None:
    loaded = gpu.backend("onnxruntime").open(gpu.bundle, (1,))
    memory = loaded.allocate(4096)
    seen = weakref.ref(memory)
    loaded._slots[memory] = SlotSessions(gpu.onnxruntime, memory, cpu_nodes=False)
    del memory
    assert seen() is None
    loaded.close()


def test_a_package_without_the_provider() -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BackendError, match=r"has no CUDAExecutionProvider.*pip install 'nextscale\[cuda\]'"):
        make_backend("onnxruntime", "cuda:1")


def test_a_run_that_fails_is_never_passed_over(gpu: Any) -> None:
    pipeline = gpu.open("onnxruntime", batch_sizes=(1,))
    gpu.onnxruntime.fails = {"step_03"}
    with pytest.raises(BackendError, match=r"ONNX Runtime failed in step_03: .*step_03 fails"):
        pipeline.generate([0], seed=0)


def test_a_graph_that_fails_at_its_warm_up_is_an_error_of_opening(gpu: Any) -> None:
    gpu.onnxruntime.fails = {"begin"}
    with pytest.raises(BackendError, match="ONNX Runtime failed in begin"):
        gpu.open("onnxruntime")
