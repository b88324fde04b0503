"""On a machine with an NVIDIA GPU: what the doubles stand for (`pytest -m gpu`)."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline
from nextscale.runtime.arrays import DeviceArray, array_of, borrow
from nextscale.runtime.backends import cuda, make_backend
from nextscale.runtime.backends.arena import Arena, read_header
from nextscale.runtime.backends.base import Bound
from nextscale.runtime.backends.blocks import Pointer
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.kernels import ChainKernels
from nextscale.runtime.backends.resident import record
from nextscale.runtime.bundle import open_bundle
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


def test_a_block_that_is_forgotten_under_a_capture(device: cuda.Device, memory: DeviceMemory) -> None:
    """The collector may come at any moment; a capture that is thrown away leaves a stream of use."""
    held = [device.allocate(2**20), device.pin(64)]

    class Call:
        def execute(self) -> None:
            held.clear()
            memory.copy(0, 4, memory.address + 128)

    graph = record(memory.stream, [Call()])

    class Fails:
        def execute(self) -> None:
            raise BackendError("refused")

    with pytest.raises(BackendError, match="refused"):
        record(memory.stream, [Call(), Fails()])
    memory.view(0, (1,), "int32")[0] = 9
    memory.push(0, 4)
    graph.execute()
    memory.pull(128, 4)
    assert memory.view(128, (1,), "int32")[0] == 9


# --- whole pipelines -------------------------------------------------------------------------------------------------


@dataclass
class Ready:
    """A bundle that a backend can open, with its target beside it."""

    bundle: Path
    name: str

    def open(self, **options: Any) -> Pipeline:
        return Pipeline.open(self.bundle, self.name, "cuda", **{"batch_sizes": (1, 2), **options})


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt", "tensorrt-rtx"])
def ready(request: pytest.FixtureRequest, aligned: Path, tmp_path_factory: pytest.TempPathFactory) -> Ready:
    name, bundle = request.param, shutil.copytree(aligned, tmp_path_factory.mktemp("ready") / "tiny")
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
    return Ready(bundle, name)


def test_pictures_are_those_of_the_cpu(ready: Ready) -> None:
    """Replayed and streamed: tokens where logits agree, so forced; pictures to rounding."""
    with Pipeline.open(ready.bundle, threads=1) as reference, ready.open() as ours:
        for seed in range(4):
            wanted = reference.generate([0, 1, None], seed=seed)
            made = ours.generate([0, 1, None], seed=seed, tokens=wanted.tokens)
            assert all(map(np.array_equal, made.tokens, wanted.tokens))
            np.testing.assert_allclose(made.floats, wanted.floats, atol=1e-4)
            forced = reference.generate([1], seed=seed).tokens
            steps = (pipeline.stream([1], seed=seed, tokens=forced) for pipeline in (ours, reference))
            for step, other in zip(*steps, strict=True):
                np.testing.assert_allclose(step.logits(), other.logits(), atol=2e-3)


def test_free_memory_stays_what_it_was(device: cuda.Device, ready: Ready) -> None:
    """A second call of each kind takes nothing that the first did not, and neither does another address."""
    height, width = open_bundle(ready.bundle).manifest.plan.image_size
    images = 2 * 3 * height * width * 4
    blocks = [device.allocate(-(-images // 256) * 256) for _ in range(12)]
    with ready.open() as pipeline:
        free = []
        for seed, block in enumerate(blocks):
            pipeline.generate([0, 1], seed=seed)
            list(pipeline.stream([1], seed=seed))
            out = DeviceArray(device, block.address, (2, 3, height, width), np.dtype(np.float32), block)
            pipeline.generate([0, 1], seed=seed, out=out)
            free.append(device.memory_info()[0])
    assert len(set(free[1:])) == 1, free


def test_memory_comes_back(device: cuda.Device, ready: Ready) -> None:
    """Though a result is held; contexts of the device and of libraries stay, so the first times do not count."""
    free, kept = [], []
    for seed in range(8):
        with ready.open() as pipeline:
            kept.append(list(pipeline.stream([1], seed=seed)))
        free.append(device.memory_info()[0])
    assert free[-1] >= free[1] - 2**22, free


def test_threads_and_slots(ready: Ready) -> None:
    with ready.open(slots=2) as pipeline:
        wanted = [pipeline.generate([0, 1], seed=seed) for seed in range(3)]
        made: dict[tuple[int, int], Any] = {}

        def work(number: int) -> None:
            for seed in range(3):
                made[number, seed] = pipeline.generate([0, 1], seed=seed, tokens=wanted[seed].tokens)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 12
    for (_, seed), result in made.items():
        np.testing.assert_allclose(result.floats, wanted[seed].floats, atol=1e-5)


def test_the_example_with_pytorch(ready: Ready, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    import embed_torch

    assert embed_torch.main([str(ready.bundle), "--backend", ready.name, "--device", "cuda"]) == 0
    said = capsys.readouterr()
    assert "written to cuda:0 at 0x" in said.out
    assert said.out.count("bits a token") == 4
