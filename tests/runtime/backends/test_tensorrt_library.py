"""The one module that imports TensorRT: TensorRT-RTX for real, and what is said of what is not there."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.tensorrt import library
from nextscale.runtime.backends.tensorrt.library import load
from nextscale.runtime.backends.tensorrt.wishes import choose_targets
from nextscale.runtime.errors import BackendError

ROOT = Path(__file__).resolve().parents[3]


def test_one_module_imports_tensorrt() -> None:
    pattern = re.compile(r"^\s*(import|from) tensorrt|import_module\(.tensorrt", re.MULTILINE)
    roots = ("plan", "runtime", "plugins", "export", "compare", "cli")
    found = [p for root in roots for p in (ROOT / root).rglob("*.py") if pattern.search(p.read_text(encoding="utf-8"))]
    assert found == []
    assert set(library.MODULES.values()) == {"tensorrt", "tensorrt_rtx"}


def test_rtx_builds_for_ampere_to_blackwell_and_not_for_turing_or_hopper() -> None:
    rtx = load("tensorrt-rtx")
    assert rtx.targets is not None
    assert {"sm80", "sm86", "sm89", "sm120"} <= set(rtx.targets)
    assert not {"sm75", "sm90"} & set(rtx.targets)
    assert "SM75" in rtx.trt.ComputeCapability.__members__  # it lists what it cannot build
    assert not rtx.takes_plugins
    assert not rtx.has_timing_cache
    assert rtx.parser_version
    assert re.fullmatch(r"\d+", rtx.parser_version)
    assert choose_targets(rtx, ("sm86", "sm89")) == ("sm86", "sm89")
    for asked, says in (
        (("sm90",), "not for sm90; the flavour tensorrt"),
        (("sm75",), "not for sm75 .it compiles no float32 product for sm75, .*; the flavour tensorrt"),
        (("8.6",), "8.6 is sm86"),
        (("sm86", "sm86"), "twice"),
    ):
        with pytest.raises(InputError, match=says):
            choose_targets(rtx, asked)


def test_networks_are_strongly_typed() -> None:
    rtx = load("tensorrt-rtx")
    builder = rtx.trt.Builder(rtx.logger)
    assert rtx.network(builder).get_flag(rtx.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_lines_go_to_logging_by_their_severity(caplog: pytest.LogCaptureFixture) -> None:
    rtx = load("tensorrt-rtx")
    severity = rtx.trt.ILogger.Severity
    chatter = "A node named x already exists, the output tensors of this new instance will not be queryable."
    with caplog.at_level(logging.DEBUG, "nextscale.tensorrt"):
        for kind in (severity.ERROR, severity.WARNING, severity.INFO, severity.VERBOSE):
            rtx.logger.log(kind, kind.name)
        rtx.logger.log(severity.WARNING, chatter)
    assert [r.levelno for r in caplog.records] == [
        logging.ERROR,
        logging.WARNING,
        logging.INFO,
        logging.DEBUG,
        logging.DEBUG,
    ]


@pytest.fixture
def fresh_cache() -> None:
    load.cache_clear()


@pytest.mark.usefixtures("fresh_cache")
def test_a_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    with pytest.raises(BackendError, match=r"nextscale\[tensorrt\].* with an NVIDIA GPU"):
        load("tensorrt")
    with pytest.raises(InputError, match="none of tensorrt, tensorrt-rtx"):
        load("onnx")


@pytest.mark.usefixtures("fresh_cache")
@pytest.mark.parametrize("version", ["8.6.1", "10.12.0", "12.0"])
def test_a_version_that_nobody_checked_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    import tensorrt_rtx

    other = ModuleType("tensorrt")
    other.__dict__.update(ILogger=tensorrt_rtx.ILogger, __version__=version)
    monkeypatch.setitem(sys.modules, "tensorrt", other)
    with pytest.raises(BackendError, match=f"tensorrt {version} is installed.*10.13 to 11"):
        load("tensorrt")
