"""``nextscale build``: engines for real, without torch and without a GPU, and every refusal as one sentence."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from support.bundles import edit_manifest
from support.command import Command
from support.targets import NAME, contents

RTX = ("--flavor", "tensorrt-rtx")
COMMAND = (sys.executable, "-m", "nextscale.cli", "build")
NO_TORCH = "import sys; sys.modules['torch'] = None"  # importing it raises


@pytest.fixture(scope="session")
def built(toy: Path, fresh: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """Two targets, built where torch cannot be imported: their folder, and what ``--json`` says. Read only."""
    out = tmp_path_factory.mktemp("built")
    run = fresh("build", toy, *RTX, "--target", "sm86,sm120", "--batch", "2,1", "-o", out, "--json", before=NO_TORCH)
    assert run.status == 0, run.err
    return out, json.loads(run.out)


def test_several_targets_are_built_without_torch(built: tuple[Path, dict[str, object]], toy: Path) -> None:
    out, said = built
    assert {path.name for path in out.iterdir()} == {NAME, "tensorrt-rtx-sm120-fp32"}
    assert said["bundle"] == str(toy)
    for entry, sm in zip(said["targets"], ("sm86", "sm120"), strict=True):  # type: ignore[call-overload]
        folder = out / f"tensorrt-rtx-{sm}-fp32"
        assert entry["folder"] == str(folder)
        assert entry["bytes"] == sum(path.stat().st_size for path in folder.glob("*.engine"))
        assert (entry["target"]["target"], entry["target"]["batch_sizes"]) == (sm, [1, 2])
        assert json.loads((folder / "target.json").read_text()) == {**entry["target"]}


def test_by_itself_it_builds_beside_the_bundle_and_then_nothing(nextscale: Command, own_toy: Path) -> None:
    folder = own_toy.with_name("toy.targets") / NAME
    run = nextscale("build", own_toy, *RTX, "--target", "sm86")
    assert run.status == 0
    assert f"{folder}: 6 engines (6 built), " in run.out
    assert f"weights stay in {own_toy}" in run.out
    before = contents(folder)
    run = nextscale("build", own_toy, *RTX, "--target", "sm86")
    assert f"{folder}: up to date, 6 engines, " in run.out
    assert contents(folder) == before
    run = nextscale("build", own_toy, *RTX, "--target", "sm86", "--tf32")
    assert f"{NAME}: options.tf32 was off and is on: building all engines again" in run.err
    run = nextscale("build", own_toy, *RTX, "--target", "sm86", "--tf32", "--force")
    assert f"{NAME}: asked for: building all engines again" in run.err


def test_inspect_lists_the_targets_beside_a_bundle(
    nextscale: Command, own_toy: Path, built: tuple[Path, dict[str, object]]
) -> None:
    assert json.loads(nextscale("inspect", own_toy, "--json").out)["targets"] == []
    targets = Path(shutil.copytree(built[0], own_toy.with_name("toy.targets")))
    text, found = nextscale("inspect", own_toy).out, json.loads(nextscale("inspect", own_toy, "--json").out)["targets"]
    assert [entry["target"] for entry in found] == ["sm120", "sm86"]
    assert [entry["batch_sizes"] for entry in found] == [[1, 2], [1, 2]]
    assert all(Path(entry["folder"]).name in text for entry in found)
    (targets / NAME / "target.json").write_text("{")
    (_, damaged) = json.loads(nextscale("inspect", own_toy, "--json").out)["targets"]
    assert "not valid JSON" in damaged["problem"]
    assert "not valid JSON" in nextscale("inspect", own_toy).out


def test_the_cost_of_embedded_weights_is_told_first(nextscale: Command, own_toy: Path) -> None:
    run = nextscale("build", own_toy, *RTX, "--target", "sm86", "--weights", "embedded")
    assert run.status == 0
    assert run.err.splitlines()[0] == (
        "weights embedded: 6 engines hold 1.54 kB of weights together, on disk and on the GPU; "
        "as inputs they are there once, 640 B"
    )
    assert "weights stay" not in run.out


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((*RTX, "--target", "sm90"), 2, "not for sm90; the flavour tensorrt builds for any NVIDIA GPU"),
        ((*RTX, "--target", "sm86,sm86"), 2, "a target stands twice in sm86,sm86"),
        ((*RTX, "--target", "8.6"), 2, "not for 8.6 (compute capability 8.6 is sm86)"),
        ((*RTX, "--target", "SM75"), 2, "compiles no float32 product for sm75"),
        ((*RTX, "--target", "sm86,,sm89"), 2, "--target is a list of GPUs such as sm86,sm89; found 'sm86,,sm89'"),
        ((*RTX, "--target", ""), 2, "--target is a list of GPUs such as sm86,sm89; found ''"),
        ((*RTX, "--target", "sm86", "--restore", "plugin"), 2, "takes no plugins"),
        ((*RTX, "--target", "sm86", "--batch", "0"), 2, "--batch is a list of numbers from 1 up"),
        ((*RTX, "--target", "sm86", "--batch", "1,one"), 2, "--batch is a list of numbers from 1 up"),
        ((*RTX, "--target", "sm86", "--batch", "2,2"), 2, "a batch size stands twice"),
        ((*RTX, "--target", "sm86", "--weights", "some"), 2, "'some'"),
        ((*RTX, "--target", "sm86", "--level", "9"), 2, "'--level'"),
        ((*RTX, "--target", "sm86", "--colour", "red"), 2, "--colour"),
        (("--flavor", "onnx"), 2, "'onnx'"),
        ((), 2, "--flavor"),
    ],
)
def test_what_cannot_be_built_is_refused(
    nextscale: Command, toy: Path, arguments: tuple[str, ...], status: int, says: str
) -> None:
    run = nextscale("build", toy, *arguments)
    assert run.status == status
    assert says in run.sentence
    assert not toy.with_name("toy.targets").exists()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
def test_without_a_gpu_the_flavour_tensorrt_and_unnamed_targets_are_refused(nextscale: Command, toy: Path) -> None:
    run = nextscale("build", toy, "--flavor", "tensorrt")
    assert run.status == 3
    assert "NVIDIA GPU" in run.sentence
    run = nextscale("build", toy, *RTX)
    assert run.status == 2
    assert "name the GPUs to build for with --target, of sm80" in run.sentence


def test_a_missing_library_is_told_with_what_brings_it(fresh: Command, toy: Path) -> None:
    run = fresh("build", toy, *RTX, "--target", "sm86", before="import sys; sys.modules['tensorrt_rtx'] = None")
    assert run.status == 3
    assert "pip install 'nextscale[rtx]'" in run.sentence


def test_damaged_bundles_are_one_sentence(nextscale: Command, own_toy: Path, tmp_path: Path) -> None:
    arguments = ("build", own_toy, *RTX, "--target", "sm86")
    manifest, graph = own_toy / "manifest.json", own_toy / "step_01.onnx"
    whole = {path: path.read_bytes() for path in (manifest, graph)}

    flipped = bytearray(whole[graph])
    flipped[-9] ^= 16
    graph.write_bytes(flipped)
    assert "step_01.onnx was changed or damaged" in nextscale(*arguments).sentence
    graph.write_bytes(whole[graph][:-1])
    assert "bytes, the manifest says" in nextscale(*arguments).sentence
    graph.write_bytes(whole[graph])
    manifest.write_bytes(whole[manifest][:-50])
    assert "not valid JSON" in nextscale(*arguments).sentence
    manifest.write_bytes(whole[manifest])
    edit_manifest(own_toy, lambda data: data.update(schema_version=99))
    assert "install a newer nextscale" in nextscale(*arguments).sentence
    assert "there is no such folder" in nextscale("build", tmp_path / "none", *RTX, "--target", "sm86").sentence
    assert not own_toy.with_name("toy.targets").exists()


def test_two_builds_of_one_target_do_not_meet(nextscale: Command, toy: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / f".{NAME}.lock"):
        run = nextscale("build", toy, *RTX, "--target", "sm86", "-o", tmp_path)
    assert run.status == 2
    assert "another build is writing" in run.err


def test_a_full_disk_leaves_nothing(toy: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    run = subprocess.run(
        [*COMMAND, toy, *RTX, "--target", "sm86", "-o", tmp_path / "t"],
        preexec_fn=small_files,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 3, run.stderr
    assert "the disk is full" in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "t").exists()


def test_when_a_later_target_fails_the_earlier_ones_are_told(
    nextscale: Command, toy: Path, tmp_path: Path, built: tuple[Path, dict[str, object]]
) -> None:
    (tmp_path / "tensorrt-rtx-sm120-fp32").mkdir()
    shutil.copytree(built[0] / NAME, tmp_path / NAME)
    run = nextscale("build", toy, *RTX, "--target", "sm86,sm120", "--batch", "1,2", "-o", tmp_path)
    assert run.status == 2
    assert "is no target" in run.sentence
    assert f"{tmp_path / NAME}: up to date" in run.err.splitlines()
