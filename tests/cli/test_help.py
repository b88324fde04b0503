"""Help teaches every command, and neither it nor what the base can do loads anything heavy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from support.command import Command

from nextscale.cli.main import app
from nextscale.runtime import __version__

GROUP = typer.main.get_group(app)
COMMANDS = sorted(GROUP.commands)
# Stands in for an environment with the base alone: these are not there, and asking for one is a failure.
BASE_ONLY = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnxruntime", "tensorrt", "cuda", "huggingface_hub", "jinja2", "filelock"):
    sys.modules[name] = None
"""


def test_the_commands() -> None:
    assert {"plan", "recipes", "draw", "export", "weights", "generate", "inspect", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does_with_an_example(command: str, nextscale: Command) -> None:
    run = nextscale(command, "--help")
    assert run.status == 0
    if any(parameter.required for parameter in GROUP.commands[command].params):
        assert re.search(rf"nextscale {command}\b(?! \[OPTIONS\])", run.out), "an example"
    assert run.out.count("\n") > 8
    assert nextscale(command, "-h").out == run.out


def test_the_top_names_every_command_and_what_statuses_mean(nextscale: Command) -> None:
    run = nextscale("--help")
    assert run.status == 0
    assert all(f"│ {command} " in run.out for command in COMMANDS)
    assert "2 refused input" in run.out


def test_version_and_no_arguments(nextscale: Command) -> None:
    assert nextscale("--version").out == f"nextscale {__version__}\n"
    assert "Usage: nextscale" in nextscale().out


@pytest.mark.parametrize("arguments", [["--help"], ["recipes"], ["plan", "var-d36-fastvar"], ["doctor"]], ids=" ".join)
def test_the_base_alone_is_enough(arguments: list[str], fresh: Command) -> None:
    run = fresh(*arguments, before=BASE_ONLY)
    assert run.status == 0, run.err
    assert run.err == ""


def test_the_base_alone_is_enough_for_every_help(fresh: Command) -> None:
    every = "from nextscale.cli.main import app\n"
    every += "\n".join(f"assert app(['{c}', '--help'], standalone_mode=False) == 0" for c in COMMANDS)
    run = fresh("--version", before=f"{BASE_ONLY}\n{every}")
    assert run.status == 0, run.err
    assert run.err == ""


def test_the_base_alone_is_enough_to_inspect(toy: Path, fresh: Command) -> None:
    run = fresh("inspect", toy, "--verify", before=BASE_ONLY)
    assert run.status == 0, run.err
    assert "hash matches" in run.out


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["draw", "var-d16", "-o", "{tmp}/drawn"], "this needs the package torch, .*'nextscale\\[export\\]'"),
        (
            ["export", "-r", "var-d16", "--model", "a.pth", "--vae", "b.pth", "-o", "{tmp}/new"],
            "this needs the package \\w+, which is missing: pip install 'nextscale\\[export\\]'",
        ),
        (["compare", "{toy}", "--model", "a.pth", "--vae", "b.pth"], "package \\w+, .*'nextscale\\[compare\\]'"),
        (["demo", "-o", "{tmp}/demo"], "package \\w+, .*'nextscale\\[compare\\]'"),
        (["gpu-check", "-o", "{tmp}/check.json"], "package \\w+, .*'nextscale\\[compare\\]'"),
        (["debug", "{toy}", "begin"], "package \\w+, .*'nextscale\\[export\\]'"),
        (["generate", "{toy}", "--labels", "0", "-o", "{tmp}"], "onnxruntime, .*'nextscale\\[cpu\\]'"),
    ],
)
def test_a_missing_extra_is_named(
    arguments: list[str], sentence: str, toy: Path, tmp_path: Path, fresh: Command
) -> None:
    run = fresh(*(a.format(tmp=tmp_path, toy=toy) for a in arguments), before=BASE_ONLY)
    assert run.status == 3
    assert re.search(sentence, run.sentence), run.err
    assert not list(tmp_path.iterdir())
