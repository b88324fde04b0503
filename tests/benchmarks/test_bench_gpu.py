"""The GPU benchmark where there is no GPU: its cases, its bars, and one case through on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
REPOSITORY = Path(__file__).parents[2]

import bench_gpu as bench  # noqa: E402
from gpu_cases import LARGE, MODELS, ask_of  # noqa: E402
from support import families  # noqa: E402

from nextscale.compare.gpu_check.findings import PASSED, Finding, Notes  # noqa: E402
from nextscale.compare.gpu_check.subjects import Way  # noqa: E402
from nextscale.plan.recipes import plan_for, recipe  # noqa: E402
from nextscale.runtime.backends import make_backend  # noqa: E402

FULL = bench.Case("var-d16", "var-d16", "fp16", 1)
PRUNED = bench.Case("var-d16", "var-d16-fastvar", "fp16", 1)


def found(section: str, case: bench.Case, side: str, **data: Any) -> Finding:
    return Finding(section, case.subject(side), PASSED, None, data)


def test_cases_keep_a_bundle_s_batches_together() -> None:
    every = bench.cases(["var-d16", "var-d30"], ["fp16", "bf16"], [1, 4, 8])
    assert len(every) == len(set(every)) == 2 * 2 * 2 * 3
    assert [case.batch for case in every[:3]] == [1, 4, 8]
    assert len({(case.recipe, case.precision) for case in every[:3]}) == 1
    assert {case.recipe for case in every} == {"var-d16", "var-d16-fastvar", "var-d30", "var-d30-fastvar"}


def test_bars_compare_with_the_full_model_of_the_same_case() -> None:
    rows = bench.bars(
        [
            found("latency", FULL, "eager", median=10.0),
            found("latency", FULL, "torch.compile", median=8.0),
            found("latency", FULL, "onnxruntime", median=8.5),
            found("latency", PRUNED, "eager", median=7.0),
            found("latency", PRUNED, "torch.compile", median=7.5),
            found("latency", PRUNED, "onnxruntime", median=8.2),
        ]
    )
    told = {(row["recipe"], row["bar"]): (row["value"], row["met"]) for row in rows}
    assert told == {
        ("var-d16", "times as fast as full eager"): (pytest.approx(10 / 8.5), True),
        ("var-d16", "times as fast as full torch.compile"): (pytest.approx(8 / 8.5), True),  # 0.9 is enough
        ("var-d16-fastvar", "times as fast as full eager"): (pytest.approx(10 / 8.2), True),
        ("var-d16-fastvar", "times as fast as full torch.compile"): (pytest.approx(8 / 8.2), False),
        ("var-d16-fastvar", "times as fast as pruned eager"): (pytest.approx(7 / 8.2), False),
        ("var-d16-fastvar", "times as fast as pruned torch.compile"): (pytest.approx(7.5 / 8.2), True),
    }


def test_bars_of_the_published_shares() -> None:
    """FastVAR at 1024 px is held to more: over full eager, upstream's own FastVAR and our own full."""
    full = bench.Case(LARGE, LARGE, "bf16", 1)
    pruned = bench.Case(LARGE, f"{LARGE}-fastvar", "bf16", 1)
    rows = bench.bars(
        [
            found("latency", full, "eager", median=10.0),
            found("latency", full, "upstream", median=12.0),
            found("latency", full, "tensorrt", median=7.0),
            found("latency", pruned, "eager", median=4.1),
            found("latency", pruned, "upstream", median=5.1),
            found("latency", pruned, "tensorrt", median=4.0),
        ]
    )
    assert [(row["bar"], row["value"], row["met"]) for row in rows] == [
        ("times as fast as full eager", pytest.approx(10 / 7), True),
        ("times as fast as full upstream", pytest.approx(12 / 7), True),
        ("times as fast as full eager", pytest.approx(2.5), False),  # 2.7 is asked
        ("times as fast as full upstream", pytest.approx(3.0), True),
        ("times as fast as pruned eager", pytest.approx(4.1 / 4), True),
        ("times as fast as pruned upstream", pytest.approx(5.1 / 4), True),  # 1.25
        ("times as fast as full tensorrt", pytest.approx(1.75), False),  # 1.8
    ]


def test_bars_of_memory_idle_time_and_parity() -> None:
    four = bench.Case("var-d16", "var-d16", "fp16", 4)
    rows = bench.bars(
        [
            found("memory", FULL, "tensorrt", device_over_sum=1.2),
            found("idle", FULL, "tensorrt", idle_share=0.02),
            found("idle", four, "tensorrt", idle_share=0.5),  # the bar is for one picture
            found("parity", FULL, "tensorrt", error=0.01, tolerance=0.05),
            Finding("parity", four.subject("tensorrt"), "failed", "too far", {"error": 0.2, "tolerance": 0.05}),
            Finding("parity", four.subject("onnxruntime"), "not run", "no time"),
        ]
    )
    assert [(row["bar"], row["batch"], row["met"]) for row in rows] == [
        ("device memory over the sum of causes", "1", False),
        ("idle share", "1", True),
        ("parity error", "1", True),
        ("parity error", "4", False),
    ]
    assert "MISSED" in bench.show(rows[0])


def test_what_was_not_measured_has_no_bar() -> None:
    assert bench.bars([found("latency", PRUNED, "onnxruntime", median=1.0)]) == []


def test_one_case_goes_through_on_the_cpu(
    tiny_checkpoint: tuple[Path, Path], tiny_traced: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "lacking_compiler", lambda device: "not in a test")
    way, notes = Way("onnxruntime", "cpu", lambda: make_backend("onnxruntime", "cpu", 1)), Notes(600)
    one = bench.Bench(tiny_checkpoint, tmp_path, "cpu", [way], notes, runs=2)
    one.traced = tiny_traced
    case = bench.Case("demo", "demo", "fp32", 2)
    one.run(case)
    one.compiled(case)
    assert [(f.section, f.subject["side"], f.state) for f in notes.found] == [
        ("export", "bundle", "passed"),
        ("latency", "eager", "passed"),
        ("latency", "upstream", "passed"),
        ("parity", "onnxruntime", "passed"),
        ("latency", "onnxruntime", "passed"),
        ("memory", "onnxruntime", "passed"),
        ("latency", "torch.compile", "not run"),
    ]
    latency = notes.found[1].data
    assert (latency["images"], latency["runs"]) == (2, 2)
    assert {row["bar"] for row in bench.bars(notes.found)} == {
        "parity error",
        "times as fast as full eager",
        "times as fast as full upstream",
    }
    bundle = one.bundles[("demo", "fp32")]
    assert bundle is not None
    assert bundle.manifest.verified == (), "parity is what is asked"
    assert one.bundle(case) is one.bundle(bench.Case("demo", "demo", "fp32", 4))


def test_an_infinity_goes_through_as_well(tmp_path: Path) -> None:
    """Texts instead of classes, a schedule that its files do not name; upstream's code makes one picture at a time."""
    way, notes = Way("onnxruntime", "cpu", lambda: make_backend("onnxruntime", "cpu", 1)), Notes(600)
    files = families.INFINITY.draw(tmp_path / "drawn")
    one = bench.Bench(files, tmp_path, "cpu", [way], notes, runs=1, usual=families.SCHEDULE)
    name = families.INFINITY.recipe
    one.run(bench.Case(name, name, "fp32", 1))
    one.ways = []
    one.run(bench.Case(name, name, "fp32", 2))
    assert [(f.section, f.subject["side"], f.subject["batch"], f.state) for f in notes.found] == [
        ("export", "bundle", "1", "passed"),
        ("latency", "eager", "1", "passed"),
        ("latency", "upstream", "1", "passed"),
        ("parity", "onnxruntime", "1", "passed"),
        ("latency", "onnxruntime", "1", "passed"),
        ("memory", "onnxruntime", "1", "passed"),
        ("latency", "eager", "2", "passed"),
        ("latency", "upstream", "2", "not run"),
    ]
    assert notes.found[-1].reason == "upstream's code makes one picture at a time"


def test_every_model_is_a_recipe_with_fastvar_and_has_what_is_asked() -> None:
    for name in MODELS:
        for each in (name, f"{name}-fastvar"):
            plan = plan_for(recipe(each))
            ask = ask_of(plan, 4)
            assert len(set(ask.labels)) == 4, each
            assert max(ask.labels) < (plan.model().classes or 4)


def test_an_export_that_breaks_or_has_no_time_ends_its_cases_only(
    tiny_checkpoint: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("out of it")

    monkeypatch.setattr(bench, "write_bundle", broken)
    notes = Notes(600)
    one = bench.Bench(tiny_checkpoint, tmp_path, "cpu", [], notes)
    for batch in (1, 2):
        one.run(bench.Case("demo", "demo", "fp32", batch))
    assert [(f.section, f.state, f.reason) for f in notes.found] == [
        ("export", "failed", "MemoryError: out of it"),
        ("latency", "not run", "its bundle was not exported"),
        ("latency", "not run", "its bundle was not exported"),
    ]


def test_compiling_comes_after_all_models_and_the_file_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: tuple[Path, Path]
) -> None:
    asked, notes, out = list[str](), Notes(600), tmp_path / "results" / "bench.json"
    monkeypatch.setattr(bench, "draw_checkpoint", lambda *_: tiny_checkpoint)

    def act(how: str) -> Any:
        def ask(self: Any, case: bench.Case) -> None:
            asked.append(f"{case.recipe} {how}")
            notes.ask("latency", case.subject(how), lambda: {"median": 1.0})

        return ask

    monkeypatch.setattr(bench.Bench, "run", act("eager"))
    monkeypatch.setattr(bench.Bench, "compiled", act("torch.compile"))
    sizes, made = list[int](), list[Any]()

    def save() -> None:
        bench.write(out, bench.report(notes, {}, bench.OtherWork()))
        sizes.append(len(json.loads(out.read_text())["findings"]))

    def make(files: tuple[Path, Path], folder: Path, schedule: object) -> Any:
        made.append(files)
        if len(made) == 3:  # the first model, drawn again
            raise MemoryError("another's")
        return bench.Bench(files, folder, "cpu", [], notes)

    bench.bench_all(["var-d16", "var-d30"], ["fp16"], [1], make, notes, save)
    names = ("var-d16", "var-d16-fastvar", "var-d30", "var-d30-fastvar")
    assert asked == [*(f"{n} eager" for n in names), *(f"{n} torch.compile" for n in names[2:])]
    assert [(f.section, f.reason) for f in notes.found if f.state == "failed"] == [("model", "MemoryError: another's")]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 7
    late = Notes(0.0)
    bench.bench_all(["var-d16"], ["fp16"], [1], make, late, save)
    assert [f.reason for f in late.found] == ["no time was left to draw its model"] * 4


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench, "lacking_cuda", lambda: "there is none")
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py"])
    bench.main()
    assert capsys.readouterr().out == "this benchmark measures a GPU: there is none\n"
