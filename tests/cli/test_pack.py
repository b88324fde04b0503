"""``nextscale build --flavor onnxruntime-cpu``: packed, found by ``generate``, listed by ``inspect``; refusals."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from support.command import Command

from nextscale.runtime.backends.packed.machine import instructions

CPU = ("--flavor", "onnxruntime-cpu")
NAME = f"onnxruntime-cpu-{instructions()}-{version('onnxruntime')}-fp32"


def test_it_packs_beside_the_bundle_without_torch_and_onnx_and_then_nothing(
    fresh: Command, nextscale: Command, own_toy: Path
) -> None:
    alone = "import sys; sys.modules['torch'] = sys.modules['onnx'] = None"
    run = fresh("build", own_toy, *CPU, before=alone)
    folder = own_toy.with_name("toy.targets") / NAME
    assert run.status == 0, run.err
    assert run.err.startswith("packs 0 MB of weights for this processor: about 0 MB in ")
    assert f"{folder}: 6 graphs (it was not there), " in run.out
    said = json.loads(nextscale("build", own_toy, *CPU, "--json").out)
    assert (said["folder"], said["why"]) == (str(folder), None)
    assert json.loads((folder / "packed.json").read_text()) == said["target"]
    assert f"{folder}: up to date, 6 graphs, " in nextscale("build", own_toy, *CPU).out
    assert f"{folder}: 6 graphs (asked for), " in nextscale("build", own_toy, *CPU, "--force").out


def test_pictures_are_made_with_it_and_inspect_lists_it(nextscale: Command, own_toy: Path, tmp_path: Path) -> None:
    assert nextscale("build", own_toy, *CPU, "-o", tmp_path / "t").status == 0
    run = nextscale("generate", own_toy, "--labels", "1", "--targets", tmp_path / "t", "-o", tmp_path / "pictures")
    assert run.status == 0, run.err
    assert nextscale("build", own_toy, *CPU).status == 0
    (entry,) = json.loads(nextscale("inspect", own_toy, "--json").out)["targets"]
    assert (entry["flavor"], entry["target"]) == ("onnxruntime-cpu", instructions())
    assert NAME in nextscale("inspect", own_toy).out
    (own_toy.with_name("toy.targets") / NAME / "packed.json").write_text("{")
    (entry,) = json.loads(nextscale("inspect", own_toy, "--json").out)["targets"]
    assert "not valid JSON" in entry["problem"]
    assert "not valid JSON" in nextscale("inspect", own_toy).out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--target", "sm86"), "--target is of engines for GPUs"),
        (("--batch", "2", "--tf32"), "--batch, --tf32 is of engines for GPUs"),
        (("--weights", "embedded"), "--weights is of engines for GPUs"),
        (("--restore", "function", "--level", "2"), "--restore, --level is of engines for GPUs"),
    ],
)
def test_options_of_engines_are_refused(nextscale: Command, toy: Path, arguments: tuple[str, ...], says: str) -> None:
    run = nextscale("build", toy, *CPU, *arguments)
    assert run.status == 2
    assert says in run.sentence
    assert not toy.with_name("toy.targets").exists()


def test_missing_packages_are_told_with_what_brings_them(fresh: Command, toy: Path) -> None:
    for module in ("onnxruntime", "filelock", "google.protobuf", "blake3"):
        run = fresh("build", toy, *CPU, before=f"import sys; sys.modules['{module}'] = None")
        assert run.status == 3
        assert "pip install 'nextscale[cpu]'" in run.sentence or "pip install blake3" in run.sentence
        assert "packs " not in run.err, "before any of the work"


def test_a_full_disk_leaves_nothing(toy: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))

    run = subprocess.run(
        [sys.executable, "-m", "nextscale.cli", "build", toy, *CPU, "-o", tmp_path / "t"],
        preexec_fn=small_files,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 3, run.stderr
    assert "the disk is full" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "t").exists()
