"""What stops a command becomes a sentence and a status; signals unwind it so that nothing half-written stays."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command import Command

from nextscale.cli.errors import EXTRAS, explained, stoppable
from nextscale.cli.progress import Progress
from nextscale.plan.errors import EnvironmentProblem, InputError, ParityError

MAIN = [sys.executable, "-m", "nextscale.cli"]


@pytest.mark.parametrize(
    "error, status, sentence",
    [
        (InputError("a label is wrong"), 2, "a label is wrong"),
        (EnvironmentProblem("no disk"), 3, "no disk"),
        (ParityError("step_03 differs"), 4, "step_03 differs"),
        (KeyboardInterrupt(), 130, "interrupted; nothing half-finished was kept"),
        (MemoryError(), 3, "out of memory: close other programs, or use a smaller model, batch or precision"),
        (OSError(errno.ENOSPC, "No space left on device", "out/x.png"), 3, "out/x.png: No space left on device"),
        (
            ImportError("libfoo.so is missing"),
            3,
            "a package cannot be loaded (libfoo.so is missing): `nextscale doctor`",
        ),
        (ModuleNotFoundError("x", name="inventions"), 3, "a package cannot be loaded (x)"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "this is a mistake in nextscale (ZeroDivisionError: division by zero)",
        ),
    ],
)
def test_statuses(error: BaseException, status: int, sentence: str) -> None:
    found = explained(error)
    assert found[0] == status
    assert found[1].startswith(sentence)


@pytest.mark.parametrize("module", EXTRAS)
def test_every_missing_module_names_an_extra_that_exists(module: str) -> None:
    from importlib.metadata import metadata

    status, sentence = explained(ModuleNotFoundError(f"No module named '{module}'", name=f"{module}.part"))
    extra = sentence.split("nextscale[")[1].split("]")[0]
    assert status == 3
    assert extra in (metadata("nextscale").get_all("Provides-Extra") or [])


def test_pytorch_s_lack_of_memory_on_a_gpu_is_the_environment_s() -> None:
    import torch

    status, sentence = explained(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert status == 3
    assert sentence.startswith("out of memory on the GPU: end other programs on it")
    assert explained(RuntimeError("CUDA error"))[0] == 1


def test_debug_shows_the_traceback_and_only_debug(nextscale: Command) -> None:
    run = nextscale("--debug", "plan", "var-d17")
    assert run.status == 2
    assert "Traceback (most recent call last)" in run.err
    assert "Traceback" not in nextscale("plan", "var-d17").err


def test_verbose_says_what_is_done(toy: Path, tmp_path: Path, nextscale: Command) -> None:
    run = nextscale("-v", "generate", toy, "--labels", "1", "--seed", "0", "-o", tmp_path)
    assert run.status == 0
    assert "nextscale.runtime: opened" in run.err
    assert "nextscale.runtime" not in nextscale("generate", toy, "--labels", "1", "-o", tmp_path).err


def appears(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Waits until the command has begun to write."""
    while not (folder.is_dir() and list(folder.glob(pattern))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `command &`


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_export_leaves_nothing_that_looks_finished(
    tiny_checkpoint: tuple[Path, Path], tmp_path: Path
) -> None:
    var, vae = map(str, tiny_checkpoint)
    arguments = ["export", "-r", "var-d16", "--model", var, "--vae", vae, "--top-k", "20", "-o", "engines/new"]
    process = subprocess.Popen(
        [*MAIN, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=ignore_interrupts
    )
    appears(tmp_path / "engines", ".new.tmp-*", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "nextscale: interrupted; nothing half-finished was kept"
    assert "Traceback" not in said
    assert not (tmp_path / "engines").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_terminated_draw_leaves_nothing(tmp_path: Path) -> None:
    arguments = ["draw", "var-d16", "--depth", "8", "-o", "drawn"]
    process = subprocess.Popen([*MAIN, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    appears(tmp_path / "drawn", ".draw.tmp-*/*.pth", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "Traceback" not in said
    assert not list((tmp_path / "drawn").iterdir())


def test_a_pipe_that_closes_is_no_mistake() -> None:
    process = subprocess.Popen(
        [*MAIN, "plan", "var-d36", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert "Traceback" not in said
    assert "mistake in nextscale" not in said


def test_a_terminal_without_the_signs_still_gets_its_table(fresh: Command) -> None:
    run = fresh("plan", "var-d16", PYTHONIOENCODING="ascii")
    assert run.status == 0, run.err
    assert "16?16" in run.out


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupt_that_waits_for_a_trace_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    from nextscale.export.trace import without_weights

    def traced() -> None:
        said = ""
        with stoppable(), without_weights():
            signal.raise_signal(signal.SIGINT)
            while not said:
                said = capsys.readouterr().err
                time.sleep(0.01)
            assert said == "nextscale: stopping after the piece that is being traced ...\n"

    def not_traced() -> None:
        with stoppable():
            signal.raise_signal(signal.SIGINT)

    for command in (traced, not_traced):
        with pytest.raises(KeyboardInterrupt):
            command()
    assert capsys.readouterr().err == ""


def test_an_interrupt_that_a_library_swallowed_is_raised_at_the_next_progress() -> None:
    progress = Progress()

    def command() -> None:
        with stoppable():
            with contextlib.suppress(KeyboardInterrupt):  # as a destructor does
                signal.raise_signal(signal.SIGINT)
            progress("trace", 0, 1, "x")

    with pytest.raises(KeyboardInterrupt):
        command()
    progress("trace", 0, 1, "y")  # over with the command
