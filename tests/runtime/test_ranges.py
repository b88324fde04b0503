"""Ranges for profilers: there with the package, free without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest

from nextscale.runtime import Pipeline, ranges


def test_without_the_package_a_range_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)  # an import of it fails
    ranges._nvtx.cache_clear()
    try:
        assert isinstance(ranges.span("step_00"), nullcontext)
    finally:
        ranges._nvtx.cache_clear()


def test_every_graph_runs_in_a_range_of_its_name(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in notes what profilers would see; the pipeline neither nests ranges nor leaves one open."""
    seen: list[str] = []

    @contextmanager
    def annotate(name: str, domain: str) -> Iterator[None]:
        seen.append(f"{domain} {name}")
        yield
        seen.append("end")

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    ranges._nvtx.cache_clear()
    try:
        pipeline.generate([0], seed=0)
    finally:
        ranges._nvtx.cache_clear()
    graphs = ["begin", "step_00", "step_01", "step_02", "step_03", "decode"]
    assert seen == [entry for name in graphs for entry in (f"nextscale {name}", "end")]


def test_with_the_package_a_range_can_be_entered() -> None:
    with ranges.span("step_00") as entered:
        assert entered is not None
