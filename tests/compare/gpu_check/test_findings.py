"""Findings and the budget, without anything that takes time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.compare.gpu_check.findings import FAILED, NOT_RUN, PASSED, Failed, Figures, Notes, NotRun
from nextscale.compare.gpu_check.pictures import covered, most
from nextscale.plan.errors import EnvironmentProblem


def raising(error: Exception) -> Figures:
    raise error


def test_answers_become_findings() -> None:
    notes = Notes(60)
    assert notes.ask("a", {"x": "y"}, lambda: {"seconds": 1.0})
    assert not notes.ask("b", {}, lambda: raising(NotRun("no card")))
    assert not notes.ask("c", {}, lambda: raising(Failed("too large", {"error": 2.0})))
    assert not notes.ask("d", {}, lambda: raising(EnvironmentProblem("broken")))
    notes.not_run("e", {}, "no reason")
    assert [(f.section, f.state, f.reason) for f in notes.found] == [
        ("a", PASSED, None),
        ("b", NOT_RUN, "no card"),
        ("c", FAILED, "too large"),
        ("d", FAILED, "broken"),
        ("e", NOT_RUN, "no reason"),
    ]
    assert notes.found[0].data == {"seconds": 1.0}
    assert notes.found[0].subject == {"x": "y"}
    assert notes.found[2].data == {"error": 2.0}


def test_whatever_an_answer_raises_is_noted() -> None:
    notes = Notes(60)
    assert not notes.ask("a", {}, lambda: raising(RuntimeError("no C compiler\nand a long trace")))
    assert not notes.ask("b", {}, lambda: raising(ZeroDivisionError()))
    notes.finish("c", {}, lambda: raising(MemoryError("out of it")))
    notes.finish("d", {}, dict)
    assert [(f.section, f.state, f.reason) for f in notes.found] == [
        ("a", FAILED, "RuntimeError: no C compiler"),
        ("b", FAILED, "ZeroDivisionError"),
        ("c", FAILED, "MemoryError: out of it"),
    ]


def test_an_interrupt_is_no_answer() -> None:
    def interrupted() -> Figures:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Notes(60).ask("a", {}, interrupted)


def test_what_does_not_fit_is_not_begun() -> None:
    notes = Notes(10)
    assert not notes.ask("slow", {}, lambda: raising(AssertionError()), expected=11)
    assert notes.found[0].state == NOT_RUN
    assert "it takes about 11 s" in str(notes.found[0].reason)
    assert notes.ask("slow", {}, dict, expected=1)
    assert not notes.ask("slow", {}, dict, expected=11), "a short one before does not make a long one short"
    notes._longest["slow"] = 12
    assert not notes.ask("slow", {}, lambda: raising(AssertionError()), expected=1)


def test_one_that_is_long_by_its_kind_does_not_make_its_section_long() -> None:
    notes = Notes(10)
    notes._longest["compile"] = 200
    assert notes.ask("latency", {}, dict, expected=1)
    assert not notes.ask("latency", {}, dict, expected=1, kind="compile")


def test_what_takes_longest_comes_first() -> None:
    found = most([("copy", 1.0), ("gemm", 5.0), ("copy", 1.0), ("norm", 3.0)], count=2)
    assert [(row["name"], row["calls"], row["share"]) for row in found] == [("gemm", 1, 0.5), ("norm", 1, 0.3)]
    assert found[0]["seconds"] == pytest.approx(5e-6)
    assert most([]) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=12))
def test_overlapping_work_counts_once(found: list[tuple[int, int]]) -> None:
    spans = [(float(start), float(start + length)) for start, length in found]
    ticks = {tick for start, length in found for tick in range(start, start + length)}
    assert covered(spans) == len(ticks)
