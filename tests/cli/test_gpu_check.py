"""``nextscale gpu-check`` where there is no GPU: ONNX Runtime on the CPU, on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.command import Command

from nextscale.export.checkpoint import Checkpoint
from nextscale.runtime.backends.tensorrt.wishes import Wishes
from nextscale.runtime.bundle import Bundle, open_bundle

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the whole check runs there")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "drawn"
    model, vae = tiny.draw_tiny(folder, form="safetensors")
    model.rename(folder / "var.safetensors")
    vae.rename(folder / "vae.safetensors")
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def exported_once(exports: Path, tiny_traced: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first check that exports a bundle does so for all of them, with what other tests have traced."""
    from nextscale.compare.gpu_check import check

    export = check.export

    def once(checkpoint: Checkpoint, name: str, precision: str, folder: Path, traced: Any, tick: Any) -> Bundle:
        there = exports / f"{name}-{precision}"
        return open_bundle(there) if there.exists() else export(checkpoint, name, precision, exports, tiny_traced, tick)

    monkeypatch.setattr(check, "export", once)


def states(data: Any, section: str) -> dict[str, str]:
    return {" ".join(f["subject"].values()): f["state"] for f in data["findings"] if f["section"] == section}


@pytest.mark.usefixtures("exported_once")
def test_a_quick_check_of_this_machine(nextscale: Command, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "check.json"
    run = nextscale("gpu-check", "-o", out, "--quick", "--checkpoint", checkpoint, "--threads", "1")
    assert run.status == 0, run.err
    text = out.read_text()
    data = json.loads(text)
    assert data["passed"] is True
    assert data["gpu"] is None
    assert data["machine"]["versions"]["onnxruntime"]
    assert states(data, "export") == {"demo fp32": "passed", "demo-fastvar fp32": "passed"}
    both = {f"onnxruntime cpu {name} fp32": "passed" for name in ("demo", "demo-fastvar")}
    assert states(data, "parity") == states(data, "memory") == both
    assert both.items() <= states(data, "latency").items()
    parity = next(f["data"] for f in data["findings"] if f["section"] == "parity")
    assert parity["within"] == parity["pictures"] == 2
    assert 0 < parity["error"] < 1e-4
    assert parity["equal_tokens_forced"] == 1.0
    assert len(parity["logit_errors"]) == len(tiny.SCHEDULE)
    assert all(f["reason"] for f in data["findings"] if f["state"] == "not run"), "each says why"
    assert states(data, "backend") == {"tensorrt": "not run", "tensorrt-rtx": "not run"}
    assert {f["section"] for f in data["findings"]} >= {"kernel", "variants", "idle"}
    assert str(checkpoint) not in text
    assert "nextscale-gpu-check-" not in text, "no path of this machine"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.usefixtures("exported_once")
def test_what_is_wrong_has_status_4_and_is_written(
    nextscale: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextscale.compare.gpu_check import pictures

    monkeypatch.setitem(pictures.ALLOWED, "fp32", 1e-12)
    out = tmp_path / "check.json"
    run = nextscale("gpu-check", "-o", out, "--quick", "--checkpoint", checkpoint, "--threads", "1")
    assert run.status == 4
    assert "2 of" in run.err
    assert "parity of onnxruntime cpu demo fp32: parity not held" in run.err
    data = json.loads(out.read_text())
    assert data["passed"] is False
    wrong = [f for f in data["findings"] if f["state"] == "failed"]
    assert [f["section"] for f in wrong] == ["parity", "parity"]
    assert all(f["data"]["error"] > 0 for f in wrong)


def test_time_that_is_up_is_said(nextscale: Command, checkpoint: Path, tmp_path: Path) -> None:
    run = nextscale("gpu-check", "-o", tmp_path / "c.json", "--budget", "1", "--checkpoint", checkpoint, "--json")
    assert run.status == 3, "nothing was proved"
    assert "no backend's numbers were looked at" in run.err
    data = json.loads(run.out)
    assert data["passed"] is None
    exports = [f for f in data["findings"] if f["section"] == "export"]
    assert len(exports) == 6
    assert all(f["state"] == "not run" and "of 1 s" in f["reason"] for f in exports)


def test_a_long_answer_ends_when_the_time_is_up(tiny_bundle: Path, tmp_path: Path) -> None:
    from nextscale.compare.gpu_check import engines
    from nextscale.compare.gpu_check.findings import Notes

    notes = Notes(0.5)

    def build() -> Any:
        return engines.build("tensorrt-rtx", open_bundle(tiny_bundle), tmp_path, engines.USUAL, notes.tick, "sm86")

    assert not notes.ask("build", {}, build, expected=0)
    assert notes.found[0].state == "not run"
    assert "over before it was done" in str(notes.found[0].reason)
    assert not (tmp_path / "tensorrt-rtx-sm86-fp32").exists()


def test_an_interrupt_leaves_the_file_as_it_was(
    nextscale: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextscale.compare.gpu_check import check

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(check, "export", interrupted)
    out = tmp_path / "check.json"
    out.write_text("as it was")
    run = nextscale("gpu-check", "-o", out, "--quick", "--checkpoint", checkpoint)
    assert run.status == 130
    assert out.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--backend", "magic"), "backend 'magic' is none of onnxruntime"),
        (("--backend", ""), "backend '' is none of onnxruntime"),
        (("--budget", "0"), "budget is 1 to 86400 seconds"),
        (("--threads", "0"), "threads is a number from 1 on"),
        (("--checkpoint", "nowhere"), "nowhere does not hold"),
    ],
)
def test_what_cannot_be_asked_has_status_2(
    nextscale: Command, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    run = nextscale("gpu-check", "-o", tmp_path / "check.json", *arguments)
    assert run.status == 2
    assert sentence in run.sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("plugin_layers", [0, 3])
def test_engines_are_built_before_they_run_and_the_first_bundle_s_in_every_other_way(
    nextscale: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin_layers: int
) -> None:
    """What a GPU would do, with ONNX Runtime in place of TensorRT: which questions are asked, not their answers."""
    from nextscale.compare.gpu_check import check, engines
    from nextscale.compare.gpu_check.subjects import Way
    from nextscale.runtime.backends import make_backend

    built: list[tuple[str, str]] = []

    def build(flavor: str, bundle: Bundle, place: Path, wishes: Wishes, progress: Any) -> dict[str, int]:
        built.append((bundle.folder.name, wishes.weights if wishes != Wishes(restore="function") else "function"))
        return {"bytes": 1, "plugin_layers": plugin_layers}

    def on_the_cpu(variant: str = "") -> Way:
        return Way("tensorrt", "cpu", lambda: make_backend("onnxruntime", "cpu", 1), variant)

    monkeypatch.setattr(check, "ways", lambda *_: ([on_the_cpu()], {}))
    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setattr(engines, "varied", lambda way, variant, place: on_the_cpu(variant))
    run = nextscale("gpu-check", "-o", tmp_path / "c.json", "--quick", "--checkpoint", checkpoint, "--json")
    assert run.status == 0, run.err
    data = json.loads(run.out)
    others = ["inputs", "embedded", *(["function"] if plugin_layers else [])]
    assert built == [*(("demo-fastvar-fp32", how) for how in others), ("demo-fp32", "inputs")]
    kinds = ["tensorrt", "tensorrt, weights embedded", *(["tensorrt, restore by function"] if plugin_layers else [])]
    assert list(states(data, "parity")) == [*(f"{k} cpu demo-fastvar fp32" for k in kinds), "tensorrt cpu demo fp32"]
    assert set(states(data, "parity").values()) == {"passed"}
    without = states(data, "build").get("tensorrt, restore by function demo-fastvar fp32")
    assert without == ("passed" if plugin_layers else "not run")
    order = [f["section"] for f in data["findings"]]
    assert order.index("kernel") < len(order) - 1 - order[::-1].index("export"), "others come after all of the first"


@pytest.mark.usefixtures("exported_once")
def test_what_breaks_in_one_way_leaves_the_others(
    nextscale: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextscale.compare.gpu_check import pictures
    from nextscale.runtime.pipeline import Pipeline

    def broken(*_: object) -> None:
        raise RuntimeError("CUPTI is gone\nand more")

    monkeypatch.setattr(pictures, "memory", broken)
    monkeypatch.setattr(Pipeline, "close", broken)
    out = tmp_path / "check.json"
    run = nextscale("gpu-check", "-o", out, "--quick", "--checkpoint", checkpoint, "--threads", "1")
    assert run.status == 4
    data = json.loads(out.read_text())
    assert set(states(data, "parity").values()) == {"passed"}
    assert {(f["section"], f["reason"]) for f in data["findings"] if f["state"] == "failed"} == {
        ("memory", "RuntimeError: CUPTI is gone"),
        ("close", "RuntimeError: CUPTI is gone"),
    }


def test_a_place_that_cannot_be_written_is_told_first(nextscale: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("as it was")
    run = nextscale("gpu-check", "-o", tmp_path, "--checkpoint", "nowhere")
    assert run.status == 2
    assert "is a folder: -o names the file" in run.sentence
    run = nextscale("gpu-check", "-o", tmp_path / "file" / "check.json", "--checkpoint", "nowhere")
    assert run.status == 3
    assert "cannot be written" in run.sentence
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_what_keeps_a_gpu_from_use_is_said_as_it_is() -> None:
    from nextscale.compare.gpu_check.subjects import ways

    found, lacking = ways(("onnxruntime", "tensorrt"), "the package cuda-core is missing", 1)
    assert [(way.backend, way.device) for way in found] == [("onnxruntime", "cpu")]
    assert lacking == {"tensorrt": "the package cuda-core is missing"}


def test_engines_for_a_gpu_are_those_that_a_build_makes(
    tiny_pruned_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nextscale.compare.gpu_check import engines
    from nextscale.compare.gpu_check.findings import NotRun
    from nextscale.runtime.backends.tensorrt.wishes import Gpu

    bundle = open_bundle(tiny_pruned_bundle)
    monkeypatch.setattr(engines, "this_gpu", lambda: Gpu("a card", "sm86"))
    found = engines.build("tensorrt-rtx", bundle, tmp_path, engines.USUAL, lambda *_: None)
    assert found["target"] == "sm86"
    assert found["engines"] == len(bundle.manifest.graphs)
    assert (found["weights"], found["restore"], found["plugin_layers"]) == ("inputs", "function", 0)
    assert (tmp_path / "tensorrt-rtx-sm86-fp32" / "target.json").exists()
    monkeypatch.setattr(engines, "this_gpu", lambda: Gpu("another", "sm90"))
    with pytest.raises(NotRun, match="not for sm90"):
        engines.build("tensorrt-rtx", bundle, tmp_path, engines.USUAL, lambda *_: None)
