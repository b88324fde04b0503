"""The builder's process: what it says, what becomes of it, and that it ends."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from support.targets import settings_of

from nextscale.runtime.backends.tensorrt.engine import Job
from nextscale.runtime.backends.tensorrt.process import Builder
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError


def job_of(bundle: Path, out: Path, graph: str = "begin") -> Job:
    manifest = open_bundle(bundle, verify="size").manifest
    signature = manifest.graph(graph)
    return Job(signature, manifest.guidance_rows, str(bundle / signature.file), str(out), None)


def test_one_process_builds_one_engine_after_the_other(bundle: Path, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    with Builder(settings_of(bundle)) as builder:
        for graph in ("begin", "decode"):
            built = builder.build(job_of(bundle, tmp_path / graph, graph), lambda *step: told.append(step))
            assert built.layers > 0
            assert (tmp_path / graph).stat().st_size > 0
    assert told
    assert builder._process.returncode is not None


def test_its_log_lines_come_out_here_with_the_graph(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "nextscale.tensorrt"), Builder(settings_of(bundle)) as builder:
        builder.build(job_of(bundle, tmp_path / "begin"), lambda done, phase: None)
    lines = [record for record in caplog.records if record.name == "nextscale.tensorrt"]
    assert {logging.DEBUG, logging.INFO} <= {record.levelno for record in lines}
    assert all(record.getMessage().startswith("begin: ") for record in lines)


def test_a_process_that_dies_is_told_by_its_signal(bundle: Path, tmp_path: Path) -> None:
    with Builder(settings_of(bundle)) as builder:
        builder._process.kill()
        with pytest.raises(BackendError, match="ended with SIGKILL, most likely for want of memory at begin"):
            builder.build(job_of(bundle, tmp_path / "begin"), lambda done, phase: None)


def test_a_crash_in_python_is_told_by_its_last_line(bundle: Path, tmp_path: Path) -> None:
    with (
        Builder(replace(settings_of(bundle), options={})) as builder,
        pytest.raises(BackendError, match=r"ended with status 1 \(KeyError: 'optimization_level'\)"),
    ):
        builder.build(job_of(bundle, tmp_path / "begin"), lambda done, phase: None)


def test_a_file_that_cannot_be_written_is_the_systems_error(bundle: Path, tmp_path: Path) -> None:
    with Builder(settings_of(bundle)) as builder, pytest.raises(FileNotFoundError):
        builder.build(job_of(bundle, tmp_path / "nowhere" / "begin"), lambda done, phase: None)


def test_leaving_ends_a_build_that_is_under_way(bundle: Path, tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(done: float, phase: str) -> None:
        raise Enough

    with pytest.raises(Enough), Builder(settings_of(bundle)) as builder:
        builder.build(job_of(bundle, tmp_path / "step", "step_03"), stop)
    assert builder._process.returncode is not None
