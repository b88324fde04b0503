"""The doctor tells what is there, warns of what excludes itself, and fails only for what is broken."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from support.command import Command

from nextscale.cli import doctor
from nextscale.runtime import __version__
from nextscale.runtime.backends import onnxruntime as backend

REPOSITORY = Path(__file__).resolve().parents[2]


def test_it_knows_the_extras_of_the_metadata() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = doctor.installed_extras()
    assert set(found) == set(project["optional-dependencies"])
    assert set(found["cpu"]) == {"onnxruntime", "protobuf", "filelock", "blake3"}
    assert found["export"].keys() < found["compare"].keys()  # an extra that takes in another
    assert found["dev"]["pytest"] == pytest.__version__


def test_json_and_text_say_the_same(nextscale: Command) -> None:
    run = nextscale("doctor", "--json")
    assert run.status == 0
    found = json.loads(run.out)
    assert found["nextscale"] == __version__
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert "CPUExecutionProvider" in found["providers"]
    assert "builds for sm80" in found["flavors"]["tensorrt-rtx"]
    assert not found["problems"]
    text = nextscale("doctor").out
    assert found["python"] in text
    assert ", ".join(found["providers"]) in text
    assert all(f"{flavor}: {state}" in text for flavor, state in found["flavors"].items())
    assert "nothing is broken" in text


def test_both_onnxruntimes_are_a_warning_with_the_commands_that_mend_it(
    monkeypatch: pytest.MonkeyPatch, nextscale: Command
) -> None:
    monkeypatch.setattr(backend, "installed_packages", lambda: ["onnxruntime", "onnxruntime-gpu"])
    run = nextscale("doctor")
    assert run.status == 0
    for extra in ("cpu", "cuda"):
        command = f"pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'nextscale[{extra}]'"
        assert f"`{command}`" in run.out


@pytest.mark.parametrize(
    "content, told",
    [("raise ImportError('libort.so: cannot open')", "libort.so: cannot open"), ("import os; os.abort()", "status -6")],
)
def test_an_onnxruntime_that_does_not_load_is_a_problem(
    content: str, told: str, tmp_path: Path, fresh: Command
) -> None:
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(content)
    run = fresh("doctor", PYTHONPATH=str(tmp_path))
    assert run.status == 3
    assert run.err == ""
    assert "problem: onnxruntime is installed and does not load" in run.out
    assert told in run.out


def test_what_lies_in_the_working_directory_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nextscale: Command
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit(5)")
    monkeypatch.chdir(tmp_path)
    run = nextscale("doctor")
    assert run.status == 0, run.out


def test_a_gpu_is_told_as_its_driver_s_tool_does(tmp_path: Path, fresh: Command) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 143771 MiB, 9.0, 580.65.06'\n")
    tool.chmod(0o755)
    run = fresh("doctor", "--json", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert json.loads(run.out)["gpus"] == ["NVIDIA H200, 143771 MiB, 9.0, 580.65.06"]
    assert any("no CUDA: pip install" in warning for warning in json.loads(run.out)["warnings"])
