"""``nextscale build``: engines for real, without torch and without a GPU, and every refusal as one sentence."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
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


def processes(mark: str) -> list[str]:
    """Processes, by number, that were started with ``mark`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"NEXTSCALE_TEST={mark}".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def started(place: Path, toy: Path, pattern: str) -> subprocess.Popen[str]:
    """A build that has come so far that a file of that pattern is there."""
    running = subprocess.Popen(
        [*COMMAND, toy, *RTX, "--target", "sm86", "-o", place],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NEXTSCALE_TEST": str(place)},
    )
    limit = time.monotonic() + 100
    while not list(place.glob(pattern)):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)
    return running


PATIENCE = 10.0  # seconds; a build ends within two, on a machine that does nothing else


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_stops_a_build_and_the_next_one_takes_up_what_is_finished(
    nextscale: Command, toy: Path, tmp_path: Path
) -> None:
    place = tmp_path / "t"
    running = started(place, toy, ".*.building/begin.record.json")
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130, err
    assert err.splitlines()[-1].startswith("nextscale: interrupted; nothing half-written was kept, the ")
    assert out == ""
    assert processes(str(place)) == []  # the builder's own has ended before
    (hidden,) = place.iterdir()
    assert hidden.name == f".{NAME}.building"
    assert {"".join(path.suffixes) for path in hidden.iterdir()} == {".engine", ".record.json"}
    run = nextscale("build", toy, *RTX, "--target", "sm86", "-o", place, "--json")
    (target,) = json.loads(run.out)["targets"]
    assert target["resumed"][0] == "begin"
    assert [path.name for path in place.iterdir()] == [NAME]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux tells")
def test_ctrl_c_ends_a_builder_that_does_not_stop_by_itself(toy: Path, tmp_path: Path) -> None:
    """It is halted in the middle of an engine, which therefore would never be finished."""
    place = tmp_path / "t"
    running = started(place, toy, ".*.building/begin.record.json")
    (builder,) = {int(number) for number in processes(str(place))} - {running.pid}
    os.kill(builder, signal.SIGSTOP)
    time.sleep(0.5)  # what it had said before is heard by then
    finished = {path.name for path in place.glob(".*.building/*")}
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=PATIENCE)
    assert running.returncode == 130, err
    assert processes(str(place)) == []
    assert {path.name for path in place.glob(".*.building/*")} == {name for name in finished if "partial" not in name}
    assert "decode.engine" not in finished


def test_when_a_later_target_fails_the_earlier_ones_are_told(
    nextscale: Command, toy: Path, tmp_path: Path, built: tuple[Path, dict[str, object]]
) -> None:
    (tmp_path / "tensorrt-rtx-sm120-fp32").mkdir()
    shutil.copytree(built[0] / NAME, tmp_path / NAME)
    run = nextscale("build", toy, *RTX, "--target", "sm86,sm120", "--batch", "1,2", "-o", tmp_path)
    assert run.status == 2
    assert "is no target" in run.sentence
    assert f"{tmp_path / NAME}: up to date" in run.err.splitlines()


def test_an_interrupted_build_says_what_is_kept(
    nextscale: Command, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here by what the monitor raises, at an engine that is chosen."""
    import nextscale.cli.progress as progress

    stop = ""

    def interrupt(self: object, stage: str, done: int, total: int, what: str) -> None:
        if what == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.Progress, "__call__", interrupt)
    monkeypatch.chdir(tmp_path)
    command = ("build", toy, *RTX, "--target", "sm86", "-o", "t")
    for at, options, says in (
        ("begin", (), "no engine was finished"),
        ("step_00", (), "the one engine that is finished goes into the next build"),
        ("step_01", (), "the 2 engines that are finished go into the next build"),
        ("begin", ("--batch", "2"), "no engine was finished"),
        ("step_01", ("--force",), "with --force nothing is"),
    ):
        stop = at
        run = nextscale(*command, *options)
        assert run.status == 130
        assert run.err.splitlines()[-1] == f"nextscale: interrupted; nothing half-written was kept, {says}"
    assert not (tmp_path / "t").exists()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="only Linux tells")
def test_a_killed_build_leaves_no_process_and_nothing_that_looks_finished(
    nextscale: Command, toy: Path, tmp_path: Path
) -> None:
    place, limit = tmp_path / "t", time.monotonic() + 100
    running = started(place, toy, ".*.building/*.engine")
    running.kill()
    running.communicate(timeout=60)
    assert not (place / NAME).exists()
    while processes(str(place)):
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert nextscale("build", toy, *RTX, "--target", "sm86", "-o", place).status == 0
    assert [path.name for path in place.iterdir()] == [NAME]
