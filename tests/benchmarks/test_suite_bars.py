"""The suite's bars on figures that are made up, and its page against the results that are committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import evaluate_demo
from suite_accuracy import accuracies
from suite_bars import FASTER, accuracy, bars
from suite_page import page, read, reports
from suite_plot import plot
from suite_subjects import SUBJECTS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def seen(transformer: float, decode: float, steps: tuple[float, float], own: float | None = None) -> dict[str, Any]:
    def times(seconds: float) -> dict[str, Any]:
        return {"median": seconds, "low": seconds, "high": seconds, "runs": 3}

    graphs = {"begin": 0.01, "step_00": steps[0], "step_01": steps[1], "decode": decode}
    return {
        "picture": times(transformer + decode),
        "transformer": times(transformer),
        "graphs": {name: times(seconds) for name, seconds in graphs.items()},
        **({} if own is None else {"own": {**times(own), "noise": 0.0}}),
    }


def report(subject: str, **sides: dict[str, Any]) -> dict[str, Any]:
    names = {"upstream": "upstream, full", "compiled": "torch.compile, full", "ours": "nextscale, full"}
    names |= {"pruned": "nextscale, fastvar 60, 40 %", "upstream_pruned": "upstream, fastvar 60, 40 %"}
    names |= {"int8": "nextscale, int8"}
    return {
        "subject": subject,
        "grids": [[1, 1], [2, 2]],
        "seen": {names[key]: one for key, one in sides.items()},
        "variants": [
            {"name": "full", "precision": "fp32"},
            {"name": "fastvar 60, 40 %", "precision": "fp32"},
            {"name": "int8", "precision": "int8"},
        ],
        "roofline": {"full": {"total": 3.0}, "fastvar 60, 40 %": {"total": 2.0}, "int8": {"total": 0.1}},
    }


def values(found: list[dict[str, Any]]) -> dict[str, tuple[float, bool]]:
    return {row["what"]: (pytest.approx(row["value"]), row["met"]) for row in found}


def test_every_bar_of_d16() -> None:
    made = report(
        "d16",
        upstream=seen(5.2, 2.4, (2.0, 3.0)),
        compiled=seen(4.4, 2.2, (1.0, 3.2)),
        ours=seen(4.0, 2.0, (1.25, 2.5), own=0.05),
        upstream_pruned=seen(3.5, 2.4, (2.0, 1.5)),
        pruned=seen(2.5, 2.0, (1.0, 1.0)),
    )
    assert values(bars(made)) == {
        "nextscale, full: times as fast as upstream, full, transformer": (1.3, True),
        "nextscale, fastvar 60, 40 %: times as fast as upstream, full, transformer": (2.08, True),
        "nextscale, fastvar 60, 40 %: times as fast as upstream, fastvar 60, 40 %, transformer": (1.4, True),
        "nextscale, full: transformer, against the fastest peer (torch.compile)": (1.1, True),
        "nextscale, full: decode, against the fastest peer (torch.compile)": (1.1, True),
        "nextscale, full: step_00, the worst against a peer (torch.compile)": (0.8, False),
        "the runtime's own time, as a share of a picture": (0.05 / 6.0, True),
        "nextscale, full: share of the roofline, transformer": (0.75, True),
        "nextscale, fastvar 60, 40 %: share of the roofline, transformer": (0.8, True),
    }


def test_int8_and_the_demo_s_own_time() -> None:
    made = report("d16", upstream=seen(5.0, 1, (1, 1)), ours=seen(4.0, 1, (1, 1)), int8=seen(2.0, 1, (1, 1)))
    told = values(bars(made))
    assert told["nextscale, int8: times as fast as upstream, full, transformer"] == (2.5, False)
    assert told["nextscale, int8: times as fast as nextscale, full, transformer"] == (2.0, True)
    demo = report("demo", upstream=seen(0.1, 0.1, (0.1, 0.1)), ours=seen(0.05, 0.05, (0.1, 0.1), own=0.006))
    assert values(bars(demo))["the runtime's own time per step, s"] == (0.003, False)
    assert not [row for row in bars(demo) if "times as fast" in row["what"]]


def test_int8_may_cost_a_point() -> None:
    made, known = report("d16", int8=seen(1.5, 2.0, (0.5, 1.0))), {"int8": {"accuracy_loss_upper_bound": 0.011}}
    (row,) = accuracy(made, known)
    assert (row["value"], row["at_most"], row["met"]) == (pytest.approx(1.1), 1.0, False)
    (row,) = accuracy(made, {"int8": {"accuracy_loss_upper_bound": 0.009}})
    assert row["met"]
    assert not [*accuracy(made, {})]
    assert not [*accuracy(report("d16", ours=seen(4.0, 2.0, (1.5, 2.5))), known)]


def test_bars_name_contenders_that_there_are() -> None:
    subjects = {subject.name: subject for subject in SUBJECTS}
    for bar in FASTER:
        assert {bar.mine, bar.theirs} <= set(subjects[bar.subject].contenders)


def test_of_several_runs_the_one_of_most_pictures_counts(tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    (machine / "accuracy").mkdir(parents=True)
    for place, rows in (
        (tmp_path, {"fastvar": 1, "last 40 %": 4}),
        (machine / "accuracy", {"fastvar": 3, "last 40 %": 2}),
    ):
        variants = [{"variant": name, "pictures": count} for name, count in rows.items()]
        (place / "demo_quality.json").write_text(json.dumps({"variants": variants}), encoding="utf-8")
    assert {name: row["pictures"] for name, row in accuracies(tmp_path).items()} == {"fastvar": 3, "last 40 %": 4}


def test_every_pruned_variant_names_the_demo_s() -> None:
    variants = [variant for subject in SUBJECTS for variant in subject.variants if variant.methods]
    assert {variant.accuracy for variant in variants} <= set(evaluate_demo.VARIANTS)
    for variant in variants:
        if variant.accuracy in evaluate_demo.METHODS:
            assert variant.methods == (evaluate_demo.METHODS[variant.accuracy],)


def test_the_page_is_what_the_results_say() -> None:
    """``python benchmarks/suite_page.py`` makes it anew."""
    assert (BENCHMARKS / "README.md").read_text(encoding="utf-8") == page(BENCHMARKS / "results")
    for path in reports(BENCHMARKS / "results"):
        assert path.with_suffix(".svg").read_text(encoding="utf-8") == plot(read(path)) + "\n"
