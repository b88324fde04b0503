"""On a machine with an NVIDIA GPU: what the doubles stand for (`pytest -m gpu`)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline
from nextscale.runtime.arrays import array_of, borrow
from nextscale.runtime.backends import cuda, make_backend
from nextscale.runtime.backends.arena import Arena, read_header
from nextscale.runtime.backends.base import Bound
from nextscale.runtime.backends.blocks import Pointer
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.kernels import ChainKernels
from nextscale.runtime.backends.resident import record
from nextscale.runtime.errors import BackendError
from nextscale.runtime.noise import step_uniforms

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def device() -> cuda.Device:
    return cuda.open_device(0)


@pytest.fixture
def memory(device: cuda.Device) -> DeviceMemory:
    return DeviceMemory(device, 2**20)


def test_facts(device: cuda.Device) -> None:
    assert device.sm.startswith("sm")
    free, total = device.memory_info()
    assert 0 < free <= total
    block = device.allocate(2**28)
    assert device.memory_info()[0] <= free - 2**28
    block.free()
    with pytest.raises(BackendError, match=r"CUDA_ERROR_OUT_OF_MEMORY.*bytes are free on"):
        device.allocate(2**50)
    with pytest.raises(BackendError, match="CUDA cannot find a GPU: CUDA_ERROR_INVALID_DEVICE"):
        cuda.open_device(99)


def test_noise_is_the_noise_also_from_a_graph(device: cuda.Device, memory: DeviceMemory) -> None:
    kernels = ChainKernels(device)
    keys = Bound("keys", "int64", (3, 2), memory.address)
    out = Bound("noise.in", "float32", (3, 7, 1001), memory.address + 1024)
    call = kernels.uniforms(memory.stream, keys, out, 9, 1)
    for seed, asked in ((2**62 + 1, call), (5, record(memory.stream, [call]))):
        memory.view(0, (3, 2), "int64")[...] = [(seed, 9 + i) for i in range(3)]
        memory.push(0, 1024)
        asked.execute()
        memory.pull(1024, 3 * 7 * 1001 * 4)
        wanted = step_uniforms(seed, range(9, 12), 9, 1, (7, 1001))
        assert np.array_equal(memory.view(1024, (3, 7, 1001), "float32"), wanted)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1, 4998, 4999])
def test_one_value_that_is_none_is_found(device: cuda.Device, memory: DeviceMemory, value: float, place: int) -> None:
    values = Bound("logits.out", "float32", (4, 5000), memory.address)
    flags = Bound("flags", "int32", (4,), memory.address + 2**19)
    memory.view(0, (4, 5000), "float32")[2, place] = value
    memory.push(0, 2**20)
    ChainKernels(device).flag_nonfinite(memory.stream, values, flags).execute()
    memory.pull(2**19, 16)
    assert memory.view(2**19, (4,), "int32").tolist() == [0, 0, 1, 0]


def test_from_other_threads(memory: DeviceMemory) -> None:
    def work() -> None:
        memory.view(64, (1,), "int32")[0] = 8
        memory.push(64, 4)
        memory.copy(64, 4, memory.address + 128)
        memory.pull(128, 4)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert memory.view(128, (1,), "int32")[0] == 8


def test_the_arena_holds_the_weights(device: cuda.Device, aligned: Path) -> None:
    from safetensors.numpy import load_file

    path = aligned / "weights.safetensors"
    arena, memory = Arena(device, read_header(path)), DeviceMemory(device, 2**16)
    for name, tensor in load_file(path).items():
        memory.stream.copy(memory.address, arena.addresses[name], tensor.nbytes)
        memory.pull(0, tensor.nbytes)
        assert np.array_equal(memory.view(0, tensor.shape, "float32"), tensor)


def test_beside_pytorch(device: cuda.Device, memory: DeviceMemory) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    tensor = torch.arange(6, dtype=torch.float32, device="cuda:0").reshape(2, 3)
    assert borrow(tensor, "out", (2, 3), "float32", memory).address == tensor.data_ptr()
    assert device.pointer(tensor.data_ptr()) == Pointer("device", 0, False)
    memory.stream.copy(memory.address, tensor.data_ptr(), 24)
    memory.wait()
    ours = torch.from_dlpack(array_of(memory, 0, (2, 3), "float32"))
    assert (ours.data_ptr(), ours.tolist()) == (memory.address, tensor.tolist())
    assert torch.as_tensor(array_of(memory, 0, (2, 3), "float32"), device="cuda:0").tolist() == tensor.tolist()
    with pytest.raises(InputError, match="out lies on the host"):
        borrow(tensor.cpu(), "out", (2, 3), "float32", memory)


def test_pycuda_in_a_context_of_its_own_is_refused(memory: DeviceMemory) -> None:
    driver = pytest.importorskip("pycuda.driver")
    gpuarray = pytest.importorskip("pycuda.gpuarray")
    driver.init()
    context = driver.Device(0).make_context()
    try:
        array = gpuarray.zeros((2, 3), np.float32)
        with pytest.raises(InputError, match=r"import pycuda\.autoprimaryctx instead of pycuda\.autoinit"):
            borrow(array, "out", (2, 3), "float32", memory)
        del array
    finally:
        context.pop()


@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_pictures_are_those_of_the_cpu(name: str, aligned: Path, tmp_path: Path) -> None:
    """Run, captured, replayed, streamed: tokens where logits agree, so forced; pictures to rounding."""
    import shutil

    bundle = shutil.copytree(aligned, tmp_path / "tiny")
    try:
        backend = make_backend(name, "cuda")
    except BackendError as error:
        pytest.skip(str(error))
    if name != "onnxruntime":
        from typer.testing import CliRunner

        from nextscale.cli.main import app

        sm = backend.gpu.sm  # type: ignore[attr-defined]
        arguments = ["build", str(bundle), "--flavor", name, "--target", sm, "--batch", "1,2", "--restore", "function"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    options: dict[str, Any] = {"batch_sizes": (1, 2)}
    with Pipeline.open(bundle, threads=1) as reference, Pipeline.open(bundle, backend, **options) as ours:
        for seed in range(4):
            wanted = reference.generate([0, 1, None], seed=seed)
            made = ours.generate([0, 1, None], seed=seed, tokens=wanted.tokens)
            assert all(map(np.array_equal, made.tokens, wanted.tokens))
            np.testing.assert_allclose(made.floats, wanted.floats, atol=1e-4)
            forced = reference.generate([1], seed=seed).tokens
            steps = (pipeline.stream([1], seed=seed, tokens=forced) for pipeline in (ours, reference))
            for step, other in zip(*steps, strict=True):
                np.testing.assert_allclose(step.logits(), other.logits(), atol=2e-3)
