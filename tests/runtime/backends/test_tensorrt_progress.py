"""How far a build is, from TensorRT's nested phases."""

from __future__ import annotations

import pytest

from nextscale.runtime.backends.tensorrt.library import load
from nextscale.runtime.backends.tensorrt.progress import Phases, make_monitor


def test_a_phase_counts_as_a_part_of_its_parents_step() -> None:
    phases = Phases()
    assert phases.done == 0
    phases.start("build", None, 4)
    phases.step("build", 0)
    assert phases.done == 0.25
    phases.start("time", "build", 2)
    phases.step("time", 0)
    assert phases.done == pytest.approx(0.25 + 0.5 / 4)
    phases.finish("time")
    phases.step("build", 1)
    assert phases.done == 0.5
    phases.finish("build")
    assert phases.done == 0


def test_odd_phases_stay_within_their_bounds() -> None:
    phases = Phases()
    phases.step("unknown", 3)
    phases.finish("unknown")
    phases.start("empty", "gone", 0)
    assert phases.done == 0
    phases.step("empty", 7)
    assert phases.done == 1


def test_a_monitor_never_goes_back_and_stops_when_told() -> None:
    told: list[tuple[float, str]] = []
    stop = False
    monitor = make_monitor(load("tensorrt-rtx"), lambda done, phase: told.append((done, phase)), lambda: stop)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0) is True
    monitor.phase_start("inner", "build", 1)
    monitor.phase_finish("inner")
    stop = True
    assert monitor.step_complete("build", 1) is False
    monitor.phase_finish("build")
    monitor.phase_start("next", None, 2)
    assert told == [(0, "build"), (0.5, "build"), (0.5, "inner"), (1, "build"), (1, "next")]
