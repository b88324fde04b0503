"""The commands do their work: from a recipe to pictures, and what they print is true."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import tiny
from support.bundles import edit_manifest
from support.command import Command

from nextscale.plan.codec import from_json
from nextscale.plan.cost import memory, plan_cost
from nextscale.plan.devices import device
from nextscale.plan.recipes import RECIPES, plan_for, recipe
from nextscale.runtime import Pipeline
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.result import read_metadata

pytestmark = pytest.mark.timeout(600)  # an export on a machine that is busy with something else

TINY = ["--depth", "2", "--width", "64", "--classes", "10", "--vocabulary", "64"]
TINY += ["--schedule", "1,2,3,4", "--channels", "32", "--multipliers", "1,2"]


def test_recipes_are_all_listed(nextscale: Command) -> None:
    text = nextscale("recipes").out
    rows = json.loads(nextscale("recipes", "--json").out)
    assert [row["name"] for row in rows] == list(RECIPES)
    assert all(f" {name} " in text for name in RECIPES)
    assert {"name": "var-d36", "depth": 36, "image_size": [512, 512]}.items() <= rows[8].items()


def test_a_plan_s_json_is_the_plan_and_its_cost(nextscale: Command) -> None:
    arguments = ["plan", "var-d36-fastvar", "--json", "--gpu", "h100", "--images", "4", "--precision", "bf16"]
    data = json.loads(nextscale(*arguments).out)
    plan = plan_for(recipe("var-d36-fastvar"))
    cost = plan_cost(plan, 4, "bf16")
    assert from_json(data["plan"]) == plan
    assert data["flops"] == cost.total_flops
    assert data["seconds"] == cost.seconds(device("H100"))
    assert data["memory"] == memory(plan, 4, "bf16")
    assert [graph["name"] for graph in data["graphs"]] == [graph.name for graph in cost.graphs]


def test_a_plan_s_text_and_picture(tmp_path: Path, nextscale: Command) -> None:
    run = nextscale("plan", "var-d16-fastvar", "--svg", tmp_path / "plan.svg")
    assert "FastVAR(ratios=" in run.out
    assert "roofline of RTX 4090" in run.out
    assert [line for line in run.out.splitlines() if "step_09" in line and " 256    128 " in line]
    assert (tmp_path / "plan.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.parametrize("text", ["1,2,3,5", "1x1,2x2,3x3,5x5"])
def test_a_plan_of_another_schedule(text: str, nextscale: Command) -> None:
    plan = from_json(json.loads(nextscale("plan", "var-d16", "--json", "--schedule", text).out)["plan"])
    assert plan.schedule == ((1, 1), (2, 2), (3, 3), (5, 5))
    named = nextscale("plan", "var-d16", "--json", "--schedule", "var-512")
    assert from_json(json.loads(named.out)["plan"]).image_size == (512, 512)


def test_drawing_is_what_the_library_draws(
    tiny_checkpoint: tuple[Path, Path], tmp_path: Path, nextscale: Command
) -> None:
    run = nextscale("draw", "var-d16", "-o", tmp_path / "drawn", *TINY)
    assert run.status == 0, run.err
    var = tmp_path / "drawn" / tiny_checkpoint[0].name
    assert var.read_bytes() == tiny_checkpoint[0].read_bytes()
    assert str(var) in run.out
    assert "next: nextscale export --recipe var-d16 --model" in run.out


def test_the_next_command_that_drawing_names_works(tmp_path: Path, nextscale: Command) -> None:
    more = ["--depth", "1", "--channels", "32", "--multipliers", "1", "--schedule", "1x1,2x3", "--vocabulary", "32"]
    run = nextscale("draw", "var-d16", "-o", tmp_path, *more)
    (line,) = [line for line in run.out.splitlines() if line.startswith("next: nextscale ")]
    named = shlex.split(line.removeprefix("next: nextscale ").replace("engines/NAME", str(tmp_path / "named")))
    run = nextscale(*named)
    assert run.status == 0, run.err


def test_a_depth_alone_brings_its_width_and_heads(tmp_path: Path, nextscale: Command) -> None:
    from nextscale.export.checkpoint import load_checkpoint

    more = ["--depth", "1", "--channels", "32", "--multipliers", "1", "--schedule", "1,2", "--format", "safetensors"]
    run = nextscale("draw", "var-d36", "-o", tmp_path, *more)
    assert run.status == 0, run.err
    model = load_checkpoint(tmp_path / "var_d1.safetensors", tmp_path / "vae_ch32v4096z32.safetensors").model
    assert (model.depth, model.width, model.heads, model.classes, model.shared_adaln) == (1, 64, 1, 1000, True)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """What ``nextscale export`` makes of the tiny checkpoint, and what it prints as JSON."""
    folder = tmp_path_factory.mktemp("exported")
    var, vae = map(str, tiny_checkpoint)
    arguments = ["--model", var, "--vae", vae, "--top-k", "20", "-o", "engines/new", "--json"]
    run = subprocess.run(
        [sys.executable, "-m", "nextscale.cli", "export", "--recipe", "var-d16", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    stages = [line.split(":")[0] for line in run.stderr.splitlines()]
    assert list(dict.fromkeys(stages)) == ["trace", "write", "verify"]
    return folder / "engines" / "new", json.loads(run.stdout)


def test_an_export_is_a_bundle_that_says_what_was_verified(
    exported: tuple[Path, Any], tiny_checkpoint: tuple[Path, Path]
) -> None:
    bundle, said = exported
    opened = open_bundle(bundle)
    assert said["sha256"] == opened.digest
    assert said["bytes"] == sum(p.stat().st_size for p in bundle.iterdir()) - (bundle / "manifest.json").stat().st_size
    graphs = ["begin", "step_00", "step_01", "step_02", "step_03", "decode"]
    assert [check["graph"] for check in said["verified"]] == graphs
    assert all(check["max_error"] < 1e-3 for check in said["verified"])
    assert opened.manifest.plan.steps[0].sampling == tiny.SAMPLING
    assert [file.name for file in opened.manifest.source.files] == [path.name for path in tiny_checkpoint]
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["new"]


def test_the_weights_of_a_fine_tune_with_the_bundle_s_own_tokenizer(
    exported: tuple[Path, Any], tmp_path: Path, nextscale: Command
) -> None:
    bundle, _ = exported
    tuned, other_vae = tiny.draw_tiny(tmp_path / "tuned", seed=1)
    run = nextscale("weights", bundle, "--model", tuned, "-o", tmp_path / "engines" / "tuned")
    assert run.status == 0, run.err
    assert "verified against eager PyTorch: 6 graphs" in run.out
    both = nextscale("weights", bundle, "--model", tuned, "--vae", other_vae, "-o", tmp_path / "engines" / "both")
    assert both.status == 0, both.err
    pictures, sums = [], []
    for folder in (bundle, tmp_path / "engines" / "tuned", tmp_path / "engines" / "both"):
        with Pipeline.open(folder, threads=1) as pipeline:
            result = pipeline.generate([1, 2], seed=0)
        pictures.append(result.floats)
        sums.append(result.tokens)
    assert not np.array_equal(sums[0][-1], sums[1][-1])
    assert not np.array_equal(pictures[1], pictures[2])
    for graph in bundle.glob("*.onnx"):
        assert (tmp_path / "engines" / "tuned" / graph.name).read_bytes() == graph.read_bytes()


def test_the_weights_that_a_bundle_already_has_are_its_weights(
    exported: tuple[Path, Any], tiny_checkpoint: tuple[Path, Path], tmp_path: Path, nextscale: Command
) -> None:
    bundle, _ = exported
    assert nextscale("weights", bundle, "--model", tiny_checkpoint[0], "-o", tmp_path / "same").status == 0
    name = "weights.safetensors"
    assert (tmp_path / "same" / name).read_bytes() == (bundle / name).read_bytes()


def test_generating_is_what_the_library_generates(toy: Path, tmp_path: Path, nextscale: Command) -> None:
    arguments = ["--labels", "star,0,none", "--seed", "7", "--guidance-scale", "2", "--top-p", "0.5", "--threads", "1"]
    run = nextscale("generate", toy, *arguments, "-o", tmp_path / "a", "--json")
    assert run.status == 0, run.err
    with Pipeline.open(toy, threads=1) as pipeline:
        expected = pipeline.generate(["star", 0, None], seed=7, guidance_scale=2, top_p=0.5)
    said = json.loads(run.out)
    assert [image["label"] for image in said["images"]] == [2, 0, 3]
    for image, pixels in zip(said["images"], expected.images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(image["file"])), pixels)
    found = read_metadata(said["images"][0]["file"])
    assert {"nextscale.seed": "7", "nextscale.guidance_scale": "2.0"}.items() <= found.items()
    assert found["nextscale.bundle_sha256"] == said["bundle_sha256"] == open_bundle(toy).digest
    assert set(said["step_seconds"]) == {"begin", "step_00", "step_01", "step_02", "step_03", "decode"}


def test_a_name_wins_over_a_number_and_what_is_drawn_is_told(own_toy: Path, tmp_path: Path, nextscale: Command) -> None:
    edit_manifest(own_toy, lambda data: data.update(classes=["2", "star", "None"]))
    arguments = ["generate", own_toy, "--seed", "0", "-o", tmp_path, "--labels"]
    run = nextscale(*arguments, "2,1,None,none,2")
    assert run.status == 0, run.err
    assert "drawn: 2 (class 0), star (class 1), None (class 2), no class\n" in run.out
    said = json.loads(nextscale(*arguments, "2,none", "--json").out)
    assert [(image["label"], image["class_name"]) for image in said["images"]] == [(0, "2"), (3, None)]
    edit_manifest(own_toy, lambda data: data.update(classes=None))
    assert "drawn: class 2\n" in nextscale(*arguments, "2").out


def test_a_seed_that_was_drawn_is_told(toy: Path, tmp_path: Path, nextscale: Command) -> None:
    first = nextscale("generate", toy, "--labels", "1", "-o", tmp_path / "a")
    seed = first.out.rsplit("seed ", 1)[1].strip()
    again = nextscale("generate", toy, "--labels", "1", "-o", tmp_path / "b", "--seed", seed)
    assert again.status == 0
    (a,), (b,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    assert a.name == b.name
    np.testing.assert_array_equal(np.asarray(Image.open(a)), np.asarray(Image.open(b)))


def test_inspecting(toy: Path, nextscale: Command) -> None:
    opened = open_bundle(toy)
    text = nextscale("inspect", toy).out
    said = json.loads(nextscale("inspect", toy, "--json", "--images", "3").out)
    assert opened.digest in text
    assert "length matches" in text
    assert "circle, square, star" in text
    assert all(f" {name} " in text for name in opened.manifest.files)
    assert said["memory"] == {"images": 3, "bytes": memory(opened.manifest.plan, 3, "fp32")}
    assert said["files"].keys() == opened.manifest.files.keys()
    assert not said["hashes_checked"]


@pytest.mark.skipif(shutil.which("script") is None, reason="a terminal")
@pytest.mark.parametrize("no_colour", [False, True])
def test_a_terminal_gets_a_bar_and_no_colour_where_none_is_wanted(no_colour: bool, tmp_path: Path) -> None:
    command = f"{sys.executable} -m nextscale.cli draw var-d16 -o drawn {' '.join(TINY)}"
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM", "COLUMNS")}
    run = subprocess.run(
        ["script", "--quiet", "--return", "--command", command, "/dev/null"],
        env={**environment, "TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_colour else {})},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "━━━" in run.stdout
    assert ("\x1b[38" in run.stdout or "\x1b[3" in run.stdout) == (not no_colour)
