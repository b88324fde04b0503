"""``nextscale build`` that is interrupted or killed: what it says, what it leaves, and that no process stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from support.command import Command
from support.targets import NAME

RTX = ("--flavor", "tensorrt-rtx")
COMMAND = (sys.executable, "-m", "nextscale.cli", "build")


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
