"""A bundle that TensorRT's rules of alignment admit, and pipelines over it on doubles of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.bundles import write_bundle
from support.host_cuda import HostDevice
from support.host_onnxruntime import HostOnnxRuntime
from support.host_tensorrt import HostTensorRT, aligned_plan, write_target

from nextscale.runtime import Pipeline
from nextscale.runtime.backends.onnxruntime_cuda import OnnxRuntimeCuda
from nextscale.runtime.backends.tensorrt.execute import TensorRT, TensorRTRTX
from nextscale.runtime.bundle import Bundle, open_bundle

SCRATCH = {"begin": 1000, "step_00": 2000, "step_02": 5000, "decode": 3000}


@pytest.fixture(scope="session")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test may change."""
    return write_bundle(tmp_path_factory.mktemp("aligned") / "tiny", aligned_plan())


@dataclass
class Gpu:
    """A device's double with the libraries on it, and a bundle whose targets a test may write."""

    bundle: Bundle
    device: HostDevice = field(default_factory=HostDevice)

    def __post_init__(self) -> None:
        self.tensorrt = HostTensorRT(self.device, SCRATCH)
        self.onnxruntime = HostOnnxRuntime(self.device)
        self.opened: list[Pipeline] = []

    def build(self, flavor: str = "tensorrt", batch_sizes: tuple[int, ...] = (1, 2), **changed: Any) -> Path:
        return write_target(self.bundle, self.tensorrt, flavor, batch_sizes, **changed)

    def backend(self, flavor: str = "tensorrt") -> Any:
        how: dict[str, Any] = {"open_device": lambda _: self.device}
        if flavor == "onnxruntime":
            return OnnxRuntimeCuda(ort=self.onnxruntime, **how)  # type: ignore[arg-type]
        kind = TensorRTRTX if flavor == "tensorrt-rtx" else TensorRT
        return kind(load_library=self.tensorrt.load, **how)

    def open(self, flavor: str = "tensorrt", **options: Any) -> Pipeline:
        """A pipeline; what it took while it was opened is cleared from the log of the device."""
        self.opened.append(Pipeline.open(self.bundle.folder, self.backend(flavor), **options))
        return self.opened[-1]


@pytest.fixture
def gpu(aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    """A machine with a GPU, of host memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "tiny"
    folder.mkdir()
    for file in aligned.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    made = Gpu(open_bundle(folder))
    yield made
    for pipeline in made.opened:
        pipeline.close()


@pytest.fixture
def reference(aligned: Path) -> Iterator[Callable[..., Any]]:
    """What ONNX Runtime on the CPU makes of the same request."""
    with Pipeline.open(aligned, threads=1) as pipeline:
        yield pipeline.generate
