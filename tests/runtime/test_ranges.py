"""Ranges for profilers: there with the package, free without it."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib.util import find_spec

import pytest

from nextscale.runtime import ranges


def test_without_the_package_a_range_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)  # an import of it fails
    ranges._nvtx.cache_clear()
    try:
        assert isinstance(ranges.span("step_00"), nullcontext)
    finally:
        ranges._nvtx.cache_clear()


@pytest.mark.skipif(find_spec("nvtx") is None, reason="nvtx is an optional package")
def test_with_the_package_a_range_can_be_entered() -> None:
    with ranges.span("step_00") as entered:
        assert entered is not None
