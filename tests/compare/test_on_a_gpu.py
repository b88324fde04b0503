"""What only a GPU shows of the comparison, the search for a differing tensor, and the check. Not run yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nextscale.compare.clock import Clock
from nextscale.compare.columns import lacking
from nextscale.compare.comparison import compare
from nextscale.compare.debug.difference import find
from nextscale.compare.debug.runners import Task
from nextscale.compare.gpu_check import kernel, pictures
from nextscale.compare.gpu_check.check import Options as CheckOptions
from nextscale.compare.gpu_check.check import run_check
from nextscale.compare.options import Options
from nextscale.runtime.backends.cuda import open_device
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.request import make_request

pytestmark = pytest.mark.gpu


def test_eager_compiled_and_onnxruntime_agree_on_the_gpu(
    tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path, tiny_pruned_bundle: Path, tmp_path: Path
) -> None:
    options = Options(pictures=2, device="cuda", backends=("eager", "torch.compile", "onnxruntime"))
    found = compare([tiny_bundle, tiny_pruned_bundle], *tiny_checkpoint, tmp_path / "report", options)
    found.check()
    for record in found.measured.records.values():
        assert sum(seconds[0] for seconds in record.seconds.values()) <= 1.01 * record.totals[0]
        assert record.memory is not None
        assert record.memory.device is None or record.memory.device > 0


@pytest.mark.parametrize("graph", ["begin", "step_00", "step_03", "decode"])
@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def test_the_gpu_agrees_with_the_cpu_on_every_tensor(tiny_pruned_bundle: Path, graph: str, backend: str) -> None:
    if backend.startswith("tensorrt") and (why := lacking(backend, "cuda")):
        pytest.skip(why)
    bundle = open_bundle(tiny_pruned_bundle)
    one, other = (Task(name, bundle, bundle.manifest.graph(graph)) for name in ("onnxruntime", backend))
    found = find(one, other, make_request(bundle.manifest, [3, 7], seed=5), 1e-3)
    assert found.agrees, found.sentence


def test_the_clock_counts_the_gpu_s_work() -> None:
    clock, x = Clock(on_gpu=True), torch.randn(4096, 4096, device="cuda")
    for name in ("a", "b"):
        for _ in range(20):
            x = (x @ x).clamp(-1, 1)
        clock.mark(name)
    seconds, total = clock.read()
    assert seconds["a"] > 0
    assert seconds["b"] > 0
    assert sum(seconds.values()) <= 1.01 * total


def test_idle_time_is_seen() -> None:
    x = torch.randn(2048, 2048, device="cuda")

    def pausing() -> None:
        for _ in range(5):
            (x @ x).sum().item()
            torch.cuda._sleep(1000)

    assert 0 < pictures.idle(pausing)["idle_share"] < 1
    busy = pictures.idle(lambda: [x @ x for _ in range(200)])
    assert busy["idle_share"] < 0.5


def test_the_kernel_has_a_share_of_the_bandwidth() -> None:
    found = kernel.bandwidth(open_device(), quick=True)
    assert 0 < found["share_of_copy_bandwidth"] < 1.5


def test_a_quick_check_passes() -> None:
    folder = Path(__file__).parents[2] / "checkpoints" / "demo"
    files = (folder / "var.safetensors", folder / "vae.safetensors")
    check = run_check(files, CheckOptions(quick=True), lambda *_: None)
    assert not check.failed
    assert check.gpu is not None
    ran = {f.subject.get("backend") for f in check.findings if f.section == "parity" and f.state == "passed"}
    assert "onnxruntime" in ran
