"""The performance suite on a tiny model: every figure is there and adds up, and interrupted runs keep what is done."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

for needed in ("torch", "onnx", "onnxruntime"):
    pytest.importorskip(needed)

import bench_suite as bench  # noqa: E402
import numpy as np  # noqa: E402
import suite_measure  # noqa: E402
from suite_accuracy import accuracies  # noqa: E402
from suite_bars import bars  # noqa: E402
from suite_clock import Spent, Timed  # noqa: E402
from suite_ground import Ground, available  # noqa: E402
from suite_machine import machine_name  # noqa: E402
from suite_page import costs, page, write_page  # noqa: E402
from suite_subjects import (  # noqa: E402
    COMPILED,
    DYNAMIC,
    EAGER,
    FULL,
    INT8,
    OURS,
    SUBJECTS,
    UPSTREAM,
    Contender,
    Subject,
    Variant,
    fastvar,
    seats,
)
from support.tiny import MODEL, SAMPLING, SCHEDULE, TOKENIZER  # noqa: E402

from nextscale.compare.machine import Machine  # noqa: E402
from nextscale.compare.sides import Run  # noqa: E402
from nextscale.plan.recipes import recipe  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # tracing
KEPT = "fastvar 60, 40 %"
TINY = Subject(
    "d16",
    "A tiny one",
    replace(recipe("var-d16"), model=MODEL, tokenizer=TOKENIZER, schedule=SCHEDULE, sampling=SAMPLING),
    (Variant(FULL), fastvar(KEPT, 0.4, 0.6, accuracy="last two 40, 60 %"), Variant("no such", (), "int3")),
    (*seats((UPSTREAM, EAGER, DYNAMIC, OURS), FULL), *seats((UPSTREAM, EAGER, OURS), KEPT), Contender(OURS, "no such")),
    runs=2,
    pictures=3,
    batches=(2,),
)
NAMES = [str(each) for each in TINY.contenders[:-1]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that keeps checkpoint and bundles."""
    return tmp_path_factory.mktemp("suite")


@pytest.fixture(scope="module")
def measured(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Everything of the tiny subject but processes: the folder of results, and what was written there."""
    out = tmp_path_factory.mktemp("page") / "results"
    path = bench.bench(TINY, suite_measure.Settings(threads=1, processes=False), made, out / "a-machine")
    assert [each.name for each in path.parent.iterdir()] == ["d16.json"]
    return out, json.loads(path.read_text(encoding="utf-8"))


def test_every_contender_makes_its_pictures(measured: tuple[Path, dict[str, Any]]) -> None:
    _, report = measured
    assert list(report["seen"]) == NAMES
    for name, one in report["seen"].items():
        assert one["picture"]["runs"] == report["settings"]["runs"] == 2
        assert one["latency"]["pictures"] == (3 if name.startswith(OURS) else 2)
        assert set(one["graphs"]) == {"begin", "decode", *(f"step_{i:02d}" for i in range(len(SCHEDULE)))}
        assert 0 < one["transformer"]["median"] < one["picture"]["median"]
        assert ("own" in one) == name.startswith(OURS)
    own = report["seen"][f"{OURS}, {FULL}"]["own"]
    assert 0 < own["median"] < report["seen"][f"{OURS}, {FULL}"]["picture"]["median"]
    assert own["noise"] > 0
    assert [sentence for sentence in report["left_out"] if "int3" in sentence]


def test_they_are_the_same_model(measured: tuple[Path, dict[str, Any]]) -> None:
    _, report = measured
    assert set(report["parity"]) == set(NAMES) - {f"{EAGER}, {FULL}", f"{EAGER}, {KEPT}"}
    assert 0 < max(report["parity"].values()) <= 1e-4
    error = report["errors"][KEPT]
    assert 0 < error["code_sum"] < 2
    assert error["equal"][0] == 1, "steps that are not pruned draw the same"
    assert min(error["equal"]) < 1


def test_limits_and_batches_are_measured(measured: tuple[Path, dict[str, Any]]) -> None:
    _, report = measured
    lines = report["roofline"]
    assert lines[KEPT]["total"] < lines[FULL]["total"]
    assert lines[KEPT]["decode"] == lines[FULL]["decode"] > 0
    assert list(report["batches"]) == ["2"]
    assert set(report["batches"]["2"]) == {name for name in NAMES if name.endswith(FULL)}
    assert {f"nextscale, {FULL}", f"packing, {FULL}", "dynamic ONNX"} <= set(report["made"])
    assert report["made"][f"nextscale, {KEPT}"]["traces_shared"]


def test_the_page_has_it_all(measured: tuple[Path, dict[str, Any]]) -> None:
    out, report = measured
    write_page(out)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert text == page(out)
    assert "### A tiny one\n" in text
    assert "](a-machine/d16.svg)" in text
    assert (out / "a-machine" / "d16.svg").read_text(encoding="utf-8").count("<rect") == 2 * len(NAMES)
    for i, name in enumerate(NAMES, 1):
        assert f"| {i}: {name} |" in text
    assert all(row["what"] in text for row in bars(report))
    (faster, *_) = (row for row in bars(report) if "times as fast" in row["what"])
    assert f"| A tiny one: {faster['what']} | {faster['at_least']:g} | {faster['value']:.2f}" in text
    assert "not measured" in text, "the demo model's accuracy at these shares"


def test_what_int8_costs_is_told_by_its_own_benchmark(tmp_path: Path) -> None:
    rows = [
        {"recipe": recipe, "loss": loss, "loss_upper_bound": loss + 0.01, "pictures": 80}
        for recipe, loss in ((FULL, -0.002), ("fastvar", 0.5))
    ]
    (tmp_path / "int8.json").write_text(json.dumps({"pictures": {"found": rows}}))
    report = {"variants": [{"name": INT8, "accuracy": None}], "errors": {INT8: {"code_sum": 0.25, "equal": [1, 0.5]}}}
    (row,) = costs(report, accuracies(tmp_path))
    assert row == [INT8, "0.250", "1.00, 0.50", "-0.20, under 0.80 by a 95 % bound, 80 pictures"]


def test_a_full_run_supersedes_a_quick_one(measured: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, report = measured
    bench.written(tmp_path / "machine" / "d16-quick.json", {**report, "quick": True})
    assert "A tiny one (quick)" in page(tmp_path)
    bench.written(tmp_path / "machine" / "d16.json", report)
    assert "(quick)" not in page(tmp_path)


def test_what_is_there_is_not_made_again(made: Path, measured: tuple[Path, dict[str, Any]]) -> None:
    """And a process of its own for one side has what it needs, and no PyTorch where that needs none."""
    ground = Ground(TINY, made / TINY.name, 1, lambda what: None)
    ours, by_hand = Contender(OURS, FULL), Contender(DYNAMIC, FULL)
    changed = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    places = {each: ground.place(each) for each in (ours, by_hand, Contender(UPSTREAM, FULL))}
    assert changed == {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    plan, opener = ground.plan(ours), ground.opener()
    for each, place in places.items():
        task = suite_measure.suite_sides.task_of(each, plan, place, opener, suite_measure.asked(plan, 0))
        told = suite_measure.alone(task)
        assert told["torch"] == (each.side == UPSTREAM)
        assert 0 < told["anonymous"] <= told["pss"]
        assert min(told["open"], told["first"]) > 0


def test_rounds_begin_with_another_contender_each_time() -> None:
    asked = list[tuple[str, int]]()

    class Named:
        settles = 0

        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, ask: Any, logits: bool = False) -> Run:
            asked.append((self.name, ask.seed))
            return Run((), np.zeros((1, 1, 1, 3), np.float32), {"decode": 1.0}, 2.0)

        def versions(self) -> dict[str, str]:
            return {}

    sides: Any = {each: Named(str(each)) for each in TINY.contenders[:3]}
    ask = suite_measure.asked(TINY.plan(TINY.variants[0]), 7)
    seen = suite_measure.by_turns(sides, ask, 4, "rounds", lambda *told: None)
    assert [name for name, _ in asked[::3]] == [NAMES[0], NAMES[1], NAMES[2], NAMES[0]]
    assert [seed for _, seed in asked] == [seed for seed in (7, 8, 9, 10) for _ in range(3)]
    assert all(one.summary(4)["transformer"]["median"] == 1.0 for one in seen.values())


def test_a_turn_begins_when_the_one_before_has_come_to_rest() -> None:
    working = threading.Event()

    def spin() -> None:
        end = time.process_time() + 0.1  # of work, however long that takes
        while time.process_time() < end:
            pass
        working.set()

    threading.Thread(target=spin).start()
    suite_measure.at_rest()
    assert working.is_set()


def test_the_clock_counts_the_asking_thread_alone() -> None:
    class Work:
        def execute(self) -> None:
            time.sleep(0.002)

    spent = Spent()
    graphs, noise = Timed(Work(), spent, "graphs"), Timed(Work(), spent, "noise")
    spent.start()
    graphs.execute()
    ahead = threading.Thread(target=noise.execute)
    ahead.start()
    ahead.join()
    assert spent.graphs >= 0.002
    assert spent.noise == 0.0
    noise.execute()
    assert spent.noise >= 0.002
    spent.start()
    assert spent.graphs == 0.0


def test_subjects_hold_together() -> None:
    assert len({subject.name for subject in SUBJECTS}) == len(SUBJECTS)
    for subject in SUBJECTS:
        assert len(set(subject.contenders)) == len(subject.contenders)
        assert set(subject.quick) <= set(subject.contenders)
        for each in subject.contenders:
            assert subject.plan(subject.variant(each.variant)).schedule == subject.recipe.schedule
        found, left_out = available(subject, subject.contenders)
        assert len(found) + len(left_out) == len(subject.contenders)
    d16 = next(subject for subject in SUBJECTS if subject.name == "d16")
    kept = [step.layers[0].sub_layers[0].kept for step in d16.plan(d16.variant(KEPT)).steps[-2:]]
    assert kept == [169 - int(169 * 0.4), 256 - int(256 * 0.6)]
    assert not [each for each in d16.quick if each.side == COMPILED], "compiling alone takes minutes"


def test_a_machine_has_a_name() -> None:
    def named(processor: str, cores: int) -> str:
        return machine_name(Machine(processor, cores, "", "", {}, None, ""))

    assert named("Intel(R) Xeon(R) Processor", 2).startswith("intel-xeon-2-cores-")
    assert named("Intel(R) Core(TM) i7-1165G7 CPU @ 2.80GHz", 8).startswith("intel-core-i7-1165g7-8-cores-")
    assert named("AMD EPYC 7763 64-Core Processor", 1).startswith("amd-epyc-7763-1-core-")


def test_the_command_says_what_its_options_do() -> None:
    run = subprocess.run([sys.executable, bench.__file__, "--help"], capture_output=True, text=True, check=True)
    for option in ("--only", "--quick", "--runs", "--threads", "--folder", "--accuracy"):
        assert option in run.stdout
    assert [s.name for s in bench.chosen(None, True)] == ["demo", "d16"]
    assert [s.name for s in bench.chosen(["d36-512"], False)] == ["d36-512"]
