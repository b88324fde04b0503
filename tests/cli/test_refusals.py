"""Bad input of every kind: one sentence that says what to do, status 2, no traceback, nothing left behind."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bundles import edit_manifest
from support.command import Command

from nextscale.runtime.manifest import WEIGHTS_FILE


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


ARGUMENTS = [
    (["plann"], r"No such command 'plann'\. Did you mean 'plan'\?"),
    (["plan"], r"Missing argument 'RECIPE'.* \(see `nextscale plan --help`\)"),
    (["plan", "var-d17"], r"recipe 'var-d17' is unknown; known are var-d16, .*demo-fastvar"),
    (["plan", "var-d16", "--colour"], r"No such option: --colour"),
    (["plan", "var-d16", "--gpu", "Voodoo 2"], r"device 'Voodoo 2' is unknown; known are RTX 3090, "),
    (["plan", "var-d16", "--images", "0"], r"Invalid value for '--images'"),
    (["plan", "var-d16", "--images", "many"], r"Invalid value for '--images'"),
    (["plan", "var-d16", "--precision", "int3"], r"Invalid value for '--precision'.*'fp32', 'fp16', 'bf16'"),
    (["plan", "var-d16", "--schedule", "1"], r"schedule '1' is not a list of two or more sides such as 1,2,3,4"),
    (["plan", "var-d16", "--schedule", "1,,2"], r"schedule '1,,2' is not a list"),
    (["plan", "var-d16", "--schedule", "1,0,2"], r"schedule '1,0,2' has a side of 0"),
    (["plan", "var-d16", "--schedule", "1,-2"], r"schedule '1,-2' is not a list"),
    (["draw", "var-d16", "-o", "{tmp}/d", "--seed", "-1"], r"Invalid value for '--seed'"),
    (["draw", "var-d16", "-o", "{tmp}/d", "--width", "65"], r"a width of 65 cannot be shared by 16 heads"),
    (["draw", "var-d16", "-o", "{tmp}/d", "--multipliers", "1;2"], r"multipliers '1;2' is not a list"),
    (["draw", "var-d16", "-o", "{tmp}/d", "--channels", "30"], r"30 channels times 1 cannot be normed in 32 groups"),
    (["draw", "var-d16", "-o", "{tmp}/d", "--format", "ckpt"], r"Invalid value for '--format'.*'pth', 'safetensors'"),
    (["export", "-o", "{tmp}/new"], r"Missing option '--recipe'"),
    (["export", "-r", "var-d16", "-o", "{tmp}/new"], r"either as --model FILE and --vae FILE, or as --repo .* neither"),
    (["export", "-r", "var-d16", "-o", "{tmp}/new", "--model", "a"], r"found --model"),
    (
        ["export", "-r", "var-d16", "-o", "{tmp}/new", "--model", "a", "--vae", "b", "--revision", "x"],
        r"without a --repo",
    ),
    (["export", "-r", "var-d16", "-o", "{tmp}", "--model", "a", "--vae", "b"], r"{tmp} is already there: take another"),
    (
        ["export", "-r", "var-d16", "-o", "{tmp}/new", "--model", "a", "--vae", "b"],
        r"no checkpoint at a: give the path",
    ),
    (["export", "-r", "var-d16", "-o", "{tmp}/new", "--repo", "no repo"], r"'no repo' names no repository"),
    (["generate", "{tmp}/none", "--labels", "0"], r"{tmp}/none is not a bundle: there is no such folder"),
    (["generate", "{tmp}", "--labels", "0"], r"{tmp} is not a bundle: it has no manifest\.json"),
    (["inspect", "{tmp}"], r"{tmp} is not a bundle: it has no manifest\.json"),
    (["weights", "{tmp}", "--model", "a.pth", "-o", "{tmp}/new"], r"{tmp} is not a bundle: it has no manifest\.json"),
    (["weights", "{toy}", "-o", "{tmp}/new"], r"Missing option '--model'"),
    (
        ["export", "-r", "hart-1024", "--model", "a", "--vae", "b", "-o", "{tmp}/new", "--system-prompt", "Draw."],
        r"--system-prompt is given without a --text encoder",
    ),
    (["plan", "infinity-2b-1m", "--text-tokens", "5000"], r"reads texts of up to 512 tokens; found --text-tokens 5000"),
    (["plan", "hart-1024", "--text-tokens", "5"], r"reads texts of 300 tokens; found --text-tokens 5"),
    (["draw", "hart-1024", "-o", "{tmp}/d", "--width", "64", "--heads", "5"], r"width of 64 cannot be shared by 5"),
    (["draw", "infinity-125m-1m", "-o", "{tmp}/d", "--width", "40", "--heads", "2"], r"is pooled by 16 heads"),
    (["generate", "{toy}"], r"by one of --labels, --prompt and --features; found none of them"),
    (["generate", "{toy}", "--labels", "1", "--prompt", "a cat"], r"--labels, --prompt and --features; found several"),
    (["generate", "{toy}", "--prompt", "star"], r"{toy} makes pictures of classes: give --labels"),
    (
        ["generate", "{toy}", "--features", "{tmp}/none.npy"],
        r"{tmp}/none\.npy is no \.npy file of .*No such file",
    ),
    (["generate", "{toy}", "--labels", "1", "--negative", "dark"], r"conditioned on classes: leave it out"),
    (
        ["generate", "{toy}", "--labels", "1", "--guidance-scale", "1,x"],
        r"guidance-scale '1,x' is no number, nor",
    ),
    (["generate", "{toy}", "--labels", "1", "--guidance-scale", "1,2"], r"by scale has 4 numbers, .*; found 2"),
    (["generate", "{toy}", "--labels", ""], r"labels '' has an empty entry"),
    (["generate", "{toy}", "--labels", "3"], r"labels are 0 to 2, or None for no class; found 3"),
    (["generate", "{toy}", "--labels", "-1"], r"labels are 0 to 2, or None for no class; found -1"),
    (["generate", "{toy}", "--labels", "hexagon"], r"label 'hexagon' is none of circle, square, star"),
    (["generate", "{toy}", "--labels", "1,--5"], r"label '--5' is none of circle, square, star"),
    (["generate", "{toy}", "--labels", "9" * 5000], r"label '9+' is none of circle, square, star"),
    (["generate", "{toy}", "--labels", "1,,2"], r"labels '1,,2' has an empty entry"),
    (["generate", "{toy}", "--labels", "1", "--top-p", "1.5"], r"top_p is a number above 0 and up to 1; found 1\.5"),
    (["generate", "{toy}", "--labels", "1", "--top-p", "nan"], r"top_p is a number above 0 and up to 1; found nan"),
    (["generate", "{toy}", "--labels", "1", "--temperature", "0"], r"temperature is a number above .*; found 0\.0"),
    (["generate", "{toy}", "--labels", "1", "--seed", "-5"], r"seed is a whole number from 0 .*; found -5"),
    (["generate", "{toy}", "--labels", "1", "--backend", "magic"], r"backend 'magic' is none of .*onnxruntime"),
    (["generate", "{toy}", "--labels", "1", "--device", "tpu"], r"has the devices 'cpu' and 'cuda'; found 'tpu'"),
    (["generate", "{toy}", "--labels", "1", "--threads", "0"], r"threads is 1 to 256.*; found 0"),
    (["generate", "{toy}", "--labels", "1", "--threads", "20000"], r"threads is 1 to 256.*; found 20000"),
]


@pytest.mark.parametrize("arguments, sentence", ARGUMENTS, ids=[" ".join(a)[:80] for a, _ in ARGUMENTS])
def test_arguments(arguments: list[str], sentence: str, toy: Path, tmp_path: Path, nextscale: Command) -> None:
    run = nextscale(*(a.format(tmp=tmp_path, toy=toy) for a in arguments))
    assert run.status == 2
    for name, place in (("{tmp}", tmp_path), ("{toy}", toy)):
        sentence = sentence.replace(name, re.escape(str(place)))
    assert re.search(sentence, run.sentence)
    assert not list(tmp_path.iterdir())


def names_outside(folder: Path) -> None:
    def edit(data: Any) -> None:
        data["files"]["../x"] = data["files"].pop("begin.onnx")
        data["graphs"][0]["file"] = "../x"

    edit_manifest(folder, edit)


BUNDLES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("bit flip", lambda f: flip_bit(f / WEIGHTS_FILE), r"weights\.safetensors was changed or damaged: its sha256 is"),
    ("truncated graph", lambda f: truncate(f / "step_02.onnx"), r"step_02\.onnx has [\d,]+ bytes, the manifest says"),
    ("missing graph", lambda f: (f / "decode.onnx").unlink(), r"decode\.onnx is missing, and the bundle needs it"),
    ("name outside", names_outside, r"'\.\./x' is not a plain file name"),
    ("no JSON", lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json: "),
    ("unknown key", lambda f: edit_manifest(f, lambda d: d.update(colour=1)), r"manifest\.json: .*colour"),
    ("version", lambda f: edit_manifest(f, lambda d: d.update(schema_version=99)), r"manifest\.json: .*99"),
    ("link", lambda f: (f / "begin.onnx").rename(f / "b") and (f / "begin.onnx").symlink_to("b"), r"is a link"),
]


@pytest.mark.parametrize("damage, sentence", [b[1:] for b in BUNDLES], ids=[b[0] for b in BUNDLES])
def test_bundles(
    damage: Callable[[Path], Any], sentence: str, own_toy: Path, tmp_path: Path, nextscale: Command
) -> None:
    damage(own_toy)
    for arguments in (["generate", own_toy, "--labels", "0", "-o", tmp_path / "out"], ["inspect", own_toy, "--verify"]):
        run = nextscale(*arguments)
        assert run.status == 2
        assert re.search(sentence, run.sentence)
    assert not (tmp_path / "out").exists()


def resave(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    import torch

    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


CHECKPOINTS: list[tuple[str, Callable[[Path, Path], Any], str]] = [
    ("truncated", lambda var, vae: truncate(var), r"cannot be read as a checkpoint \(.*\): fetch the file again"),
    ("empty", lambda var, vae: var.write_bytes(b""), r"cannot be read as a checkpoint"),
    ("not a checkpoint", lambda var, vae: var.write_text("hello"), r"var_d2\.pth (cannot be read as|is refused)"),
    ("pickled object", lambda var, vae: var.write_bytes(pickle.dumps(Dangerous())), r"is refused: it holds more than"),
    (
        "tokenizer as model",
        lambda var, vae: shutil.copy(vae, var),
        r"is no VAR transformer: it lacks pos_start",
    ),
    ("model as tokenizer", lambda var, vae: shutil.copy(var, vae), r"is no VAR tokenizer: it lacks .*transformer"),
    (
        "missing key",
        lambda var, vae: resave(var, lambda s: s.pop("blocks.1.ffn.fc2.bias")),
        r"1 missing: blocks\.1\.ffn\.fc2\.bias",
    ),
    ("unknown key", lambda var, vae: resave(var, lambda s: s.update(lora=s["pos_start"])), r"1 unexpected: lora"),
    (
        "wrong shape",
        lambda var, vae: resave(vae, lambda s: s.update({"post_quant_conv.bias": s["post_quant_conv.bias"][:5]})),
        r"1 misshapen: post_quant_conv\.bias \(5,\), not \(32,\)",
    ),
    (
        "NaN",
        lambda var, vae: resave(var, lambda s: s["head.bias"].fill_(float("nan"))),
        r"not finite floats in head\.bias",
    ),
    (
        "half a training file",
        lambda var, vae: resave(var, lambda s: (s.update(trainer={}), [s.pop(k) for k in list(s) if k != "trainer"])),
        r"training file without \['trainer'\]\['var_wo_ddp'\]",
    ),
]


@pytest.mark.parametrize("damage, sentence", [c[1:] for c in CHECKPOINTS], ids=[c[0] for c in CHECKPOINTS])
def test_checkpoints(
    damage: Callable[[Path, Path], Any],
    sentence: str,
    tiny_checkpoint: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nextscale: Command,
) -> None:
    monkeypatch.chdir(tmp_path)
    var, vae = (Path(shutil.copy(path, tmp_path)) for path in tiny_checkpoint)
    damage(var, vae)
    run = nextscale("export", "-r", "var-d16", "--model", var, "--vae", vae, "-o", "engines/new", "--top-k", "20")
    assert run.status == 2
    assert re.search(sentence, run.sentence), run.sentence
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted((var.name, vae.name))


@pytest.mark.parametrize(
    "more, sentence",
    [
        ([], r"top-k is 900, and the checkpoint has 64 codes: give --top-k, at most 64"),
        (["--schedule", "1,2,3"], r"var_d2\.pth does not fit .*misshapen: pos_1LC \(1, 30, 64\), not \(1, 14, 64\)"),
        (["--top-k", "20", "-o", "engines/bad name"], r"'bad name' cannot name a bundle: use letters, digits"),
    ],
)
def test_what_does_not_fit_a_good_checkpoint(
    more: list[str],
    sentence: str,
    tiny_checkpoint: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nextscale: Command,
) -> None:
    monkeypatch.chdir(tmp_path)
    var, vae = tiny_checkpoint
    run = nextscale("export", "-r", "var-d16", "--model", var, "--vae", vae, "-o", "engines/new", *more)
    assert run.status == 2
    assert re.search(sentence, run.sentence), run.sentence
    assert not list(tmp_path.iterdir())


def test_a_drawn_checkpoint_is_not_drawn_over(tiny_checkpoint: tuple[Path, Path], nextscale: Command) -> None:
    sizes = ["--depth", "2", "--width", "64", "--channels", "32", "--multipliers", "1,2", "--vocabulary", "64"]
    run = nextscale("draw", "var-d16", "-o", tiny_checkpoint[0].parent, *sizes)
    assert run.status == 2
    assert "var_d2.pth is already there" in run.sentence


def test_the_environment_has_a_status_of_its_own(toy: Path, tmp_path: Path, nextscale: Command) -> None:
    (tmp_path / "file").write_text("")
    for place, why in (("file", "File exists"), ("file/out", "Not a directory")):
        run = nextscale("generate", toy, "--labels", "0", "-o", tmp_path / place)
        assert run.status == 3
        assert run.err == f"nextscale: {tmp_path / place} cannot be written: {why}\n"  # and nothing was drawn
    run = nextscale("plan", "var-d16", "--svg", tmp_path / "none" / "plan.svg")
    assert run.status == 3
    assert "plan.svg: No such file or directory" in run.sentence
