"""Publishing whole bundles or nothing."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from filelock import FileLock
from support import tiny

from nextscale.export.bundle import prepared, publishing
from nextscale.export.checkpoint import load_checkpoint
from nextscale.export.reweight import reweight
from nextscale.export.verify import verify
from nextscale.plan.errors import EnvironmentProblem, InputError, ParityError
from nextscale.runtime import Pipeline
from nextscale.runtime.bundle import open_bundle

Files = tuple[Path, Path]


def quiet(*_: object) -> None:
    """No progress."""


def test_nothing_stands_at_the_path_before_the_rename(tmp_path: Path) -> None:
    out = tmp_path / "engines" / "a"
    with publishing(out) as folder:
        (folder / "x").write_text("1")
        assert not out.exists()
    assert (out / "x").read_text() == "1"
    assert [p.name for p in out.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def export() -> None:
        with publishing(tmp_path / "a") as folder:
            (folder / "x").write_text("1")
            raise error

    with pytest.raises(error):
        export()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".a.tmp-12345"
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    with publishing(tmp_path / "a"):
        assert not left.exists()


def test_an_existing_bundle_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="already there"), publishing(tmp_path / "a"):
        pytest.fail("it must not come this far")


@pytest.mark.parametrize("name", ["..", "a b", "-a", "a/../..", ".hidden"])
def test_names_that_cannot_be_a_bundle(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError), publishing(tmp_path / name):
        pytest.fail("it must not come this far")


def test_a_second_exporter_is_refused(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".a.lock"),
        pytest.raises(InputError, match="another export is writing"),
        publishing(tmp_path / "a"),
    ):
        pytest.fail("it must not come this far")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written to"), publishing(tmp_path / "file" / "a"):
        pytest.fail("it must not come this far")


def test_a_full_disk_leaves_nothing(tmp_path: Path, tiny_checkpoint: Files) -> None:
    """A whole export whose files may grow to 1 MB; the weights need more."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "nextscale.cli", "export", "--recipe", "var-d16", "--top-k", "20"]
    command += ["--model", str(tiny_checkpoint[0]), "--vae", str(tiny_checkpoint[1]), "-o", str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 3, done.stderr
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_computes_something_else_is_refused(
    tmp_path: Path, tiny_checkpoint: Files, tiny_bundle: Path
) -> None:
    checkpoint = load_checkpoint(*tiny_checkpoint)
    plan = open_bundle(tiny_bundle).manifest.plan
    eager = prepared(checkpoint, plan, "fp32")
    with torch.no_grad():
        eager.var.blocks[1].ffn.fc2.bias[3] += 0.05  # type: ignore[union-attr, index]
    with pytest.raises(ParityError, match=r"step_0\d: .* differs from the eager model"):
        verify(tiny_bundle, eager, "fp32", quiet)


def test_an_interrupted_export_leaves_nothing_and_the_next_one_works(tmp_path: Path, tiny_checkpoint: Files) -> None:
    out = tmp_path / "engines" / "a"
    command = [sys.executable, "-m", "nextscale.cli", "export", "--recipe", "var-d16", "--top-k", "20"]
    command += ["--model", str(tiny_checkpoint[0]), "--vae", str(tiny_checkpoint[1]), "-o", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not list(tmp_path.glob("engines/.a.tmp-*")):
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    assert not out.parent.exists()  # nor the folder that was made for it
    tiny.export_tiny(tiny_checkpoint, out)
    assert open_bundle(out).manifest.verified


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(tmp_path: Path, tiny_checkpoint: Files, tiny_pruned_bundle: Path, precision: str) -> None:
    out = tiny.export_tiny(tiny_checkpoint, tmp_path / precision, "var-d16-fastvar", precision=precision)
    manifest = open_bundle(out).manifest
    dtypes = {name: w.dtype for name, w in manifest.weights.items()}
    half = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    for name in ("var/blocks.0.ffn.fc1.weight", "derived/var/blocks.0.attn.qkv_bias", "var/head.weight"):
        assert dtypes[name] == half
    for name in ("derived/var/blocks.0.attn.q_scale", "var/class_emb.weight", "vae/quantize.embedding.weight"):
        assert dtypes[name] == "float32"
    assert all(v.how.startswith("float32 twin") for v in manifest.verified)
    if precision == "bf16":
        with pytest.raises(
            InputError, match="a bundle in bf16, which onnxruntime does not run on cpu: export one in fp32"
        ):
            Pipeline.open(out)
        return
    with Pipeline.open(out, threads=1) as pipeline, Pipeline.open(tiny_pruned_bundle, threads=1) as single:
        tokens = single.generate([1, 2, 3], seed=4).tokens
        result, reference = (p.generate([1, 2, 3], seed=4, tokens=tokens).floats for p in (pipeline, single))
    assert np.abs(result - reference).max() < 2e-2  # the decoder in half precision, on the same codes


def test_new_weights_behind_the_same_graphs(tmp_path: Path, tiny_checkpoint: Files, tiny_bundle: Path) -> None:
    other = tiny.draw_tiny(tmp_path / "drawn", seed=5)
    out = reweight(tiny_bundle, *other, tmp_path / "new", quiet)
    old, new = open_bundle(tiny_bundle).manifest, open_bundle(out).manifest
    graphs = [g.file for g in old.graphs]
    assert [new.files[f] for f in graphs] == [old.files[f] for f in graphs]
    assert new.files["weights.safetensors"].sha256 != old.files["weights.safetensors"].sha256
    assert {v.graph for v in new.verified} == {g.name for g in old.graphs}


def test_a_fine_tune_without_a_tokenizer_keeps_the_bundles(
    tmp_path: Path, tiny_checkpoint: Files, tiny_bundle: Path
) -> None:
    other = tiny.draw_tiny(tmp_path / "drawn", seed=5)
    out = reweight(tiny_bundle, other[0], None, tmp_path / "new", quiet)
    old, new = ({f.weight_set: f for f in open_bundle(b).manifest.source.files} for b in (tiny_bundle, out))
    assert new["vae"] == old["vae"]
    assert new["var"].sha256 != old["var"].sha256


def test_weights_of_another_architecture_are_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    from dataclasses import replace

    from nextscale.export.draw import draw_checkpoint

    wider = draw_checkpoint(replace(tiny.MODEL, depth=3), tiny.TOKENIZER, tiny.SCHEDULE, tmp_path / "drawn", 0, "pth")
    with pytest.raises(InputError, match="the bundle was exported for"):
        reweight(tiny_bundle, *wider, tmp_path / "new", quiet)
    assert not (tmp_path / "new").exists()


def test_reweighting_a_damaged_bundle_is_refused(tmp_path: Path, tiny_checkpoint: Files, tiny_bundle: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle, damaged)
    with (damaged / "step_01.onnx").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError, match=r"step_01\.onnx"):
        reweight(damaged, *tiny_checkpoint, tmp_path / "new", quiet)


def test_a_graph_that_samples_by_other_rules_is_refused(
    tmp_path: Path, tiny_checkpoint: Files, tiny_bundle: Path
) -> None:
    """Filters are part of the graph: one that forgets top-p computes every tensor right under forced tokens."""
    changed = tmp_path / "changed"
    shutil.copytree(tiny_bundle, changed)
    plan = open_bundle(tiny_bundle).manifest.plan
    path = changed / "step_03.onnx"
    model = onnx.load_model(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "ArgMax":  # of the noise alone
            noisy = next(n for n in model.graph.node if node.input[0] in n.output)
            node.input[0] = noisy.input[1]
    onnx.save_model(model, path)
    eager = prepared(load_checkpoint(*tiny_checkpoint), plan, "fp32")
    with pytest.raises(ParityError, match=r"step_03: \d+ of \d+ tokens are drawn differently"):
        verify(changed, eager, "fp32", quiet)


def test_every_input_of_a_picture_is_seen(tmp_path: Path, tiny_checkpoint: Files, tiny_bundle: Path) -> None:
    """A graph that leaves the temperature out is refused."""
    changed = Path(shutil.copytree(tiny_bundle, tmp_path / "changed"))
    for path in changed.glob("step_*.onnx"):
        model = onnx.load_model(path, load_external_data=False)
        (shaped,) = (node for node in model.graph.node if "temperature.in" in node.input)
        (divided,) = (node for node in model.graph.node if shaped.output[0] in node.input)
        divided.op_type = "Identity"
        del divided.input[1:]
        path.write_bytes(model.SerializeToString())
    eager = prepared(load_checkpoint(*tiny_checkpoint), open_bundle(tiny_bundle).manifest.plan, "fp32")
    with pytest.raises(ParityError, match="tokens are drawn differently"):
        verify(changed, eager, "fp32", quiet)


def test_an_export_leaves_the_checkpoint_as_it_was(tiny_checkpoint: Files, tiny_bundle: Path) -> None:
    checkpoint, plan = load_checkpoint(*tiny_checkpoint), open_bundle(tiny_bundle).manifest.plan
    prepared(checkpoint, plan, "fp16")
    again = prepared(checkpoint, plan, "fp32")
    assert again.var.head.weight is checkpoint.var.head.weight  # shared, not copied
    fresh = prepared(load_checkpoint(*tiny_checkpoint), plan, "fp32")
    for ours, theirs in ((again.var, fresh.var), (again.vae, fresh.vae)):
        wanted = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
        found = dict(ours.named_parameters()) | dict(ours.named_buffers())
        assert found.keys() == wanted.keys()
        assert all(found[name].dtype == wanted[name].dtype for name in wanted)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_graph_that_does_not_run_is_told(tmp_path: Path, tiny_checkpoint: Files, tiny_bundle: Path) -> None:
    changed = Path(shutil.copytree(tiny_bundle, tmp_path / "changed"))
    (changed / "weights.safetensors").write_bytes(b"")
    eager = prepared(load_checkpoint(*tiny_checkpoint), open_bundle(tiny_bundle).manifest.plan, "fp32")
    with pytest.raises(EnvironmentProblem, match=r"ONNX Runtime .* cannot run begin\.onnx, so it cannot be verified"):
        verify(changed, eager, "fp32", quiet)
