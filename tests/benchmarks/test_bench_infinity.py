"""The Infinity benchmark on a tiny model: all three sides are the same model, and its bars say what the figures say."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

for needed in ("torch", "onnx", "onnxruntime"):
    pytest.importorskip(needed)

import bench_infinity as bench  # noqa: E402
import infinity_sides as sides  # noqa: E402
import numpy as np  # noqa: E402
from infinity_bars import bars  # noqa: E402
from machine_rates import matrices, rates, reached, roofline  # noqa: E402
from suite_machine import machine_name  # noqa: E402
from support.drawn_infinity import TOKENIZER  # noqa: E402

from nextscale.compare.machine import this_machine  # noqa: E402
from nextscale.plan.cost import plan_cost  # noqa: E402
from nextscale.plan.families.infinity import infinity_model  # noqa: E402
from nextscale.plan.methods.fastvar import FastVAR  # noqa: E402
from nextscale.plan.recipes import Recipe, recipe  # noqa: E402
from nextscale.plan.schedules import squares  # noqa: E402
from nextscale.plan.types import Text  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # tracing
MODEL = infinity_model(2, 64, heads=2, chunks=1, bits=32, text=Text(512, 48), ffn_width=256)
CODES = replace(TOKENIZER, code_channels=32)  # with few bits some tokens are equal, and tie at the cut
ASK = sides.Ask(text_tokens=5, seed=6)


def tiny(name: str) -> Recipe:
    """The recipe of that name with tiny numbers; where it prunes, at the last of three scales."""
    chosen = replace(recipe(name), model=MODEL, tokenizer=CODES, schedule=squares(1, 2, 3))
    return replace(chosen, methods=(FastVAR({-1: 0.4}, -2),)) if chosen.methods else chosen


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> bench.Ground:
    return bench.Ground(tmp_path_factory.mktemp("bundles"), threads=1, ask=ASK, text_room=8)


def test_all_sides_run_the_same_model(ground: bench.Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = bench.bench_all([tiny(bench.QUICK[1])], ground, 1, tmp_path, memory=False)
    assert json.loads((tmp_path / "infinity_125m.json").read_text())["cases"] == json.loads(json.dumps(report["cases"]))
    (case,) = report["cases"]
    assert case["kept"] == [1, 4, 6]
    assert case["text_room"] == 8
    assert case["parity"]["eager"]["moves"] is None
    for side in ("runtime", "upstream"):
        assert 0 < case["parity"][side]["error"] <= 1e-4
        assert case["parity"][side]["beyond"] == 0
    for side in case["sides"].values():
        assert side["total"]["runs"] == 1
        assert side["total"]["median"] == pytest.approx(side["begin"] + sum(side["steps"]) + side["noise"])
        assert min(side["begin"], *side["steps"]) > 0
    assert 0 < case["sides"]["runtime"]["noise"] < case["sides"]["runtime"]["total"]["median"]
    assert [row["what"] for row in report["bars"]] == ["error of logits under forced bits"]
    path = tmp_path / "infinity_125m.json"
    other = json.dumps({"cases": [case | {"recipe": "infinity-125m-1m"}]})
    path.write_text(other)
    again = bench.bench_all([tiny(bench.QUICK[1])], ground, 1, tmp_path, memory=False)
    assert [each["recipe"] for each in again["cases"]] == ["infinity-125m-1m", case["recipe"]], "what is there stays"
    page = (tmp_path / "infinity_125m.md").read_text()
    assert "| infinity-125m-0.25m-fastvar | 3 |" in page
    assert "9.5 s |" in page
    assert "infinity-125m-0.25m-fastvar: parity" in capsys.readouterr().out


def test_a_bundle_and_its_checkpoint_are_made_once(ground: bench.Ground) -> None:
    chosen = tiny(bench.QUICK[1])
    first = (ground.bundle(chosen), ground.files(chosen))
    assert first == (ground.folder / chosen.name, ground.files(chosen))
    changed = {path: path.stat().st_mtime_ns for path in ground.folder.rglob("*")}
    assert (ground.bundle(chosen), ground.files(chosen)) == first
    assert changed == {path: path.stat().st_mtime_ns for path in ground.folder.rglob("*")}


def test_memory_is_that_of_one_side_alone(ground: bench.Ground) -> None:
    chosen = tiny(bench.QUICK[1])
    bundle, files = ground.bundle(chosen), ground.files(chosen)
    plan = sides.RuntimeSide(bundle, 1).plan
    seen = {name: bench.peak(name, plan, files, bundle, ground, chosen) for name in (sides.UPSTREAM, sides.RUNTIME)}
    assert seen["runtime"]["pss"] < seen["upstream"]["pss"], "it has no PyTorch"
    assert all(0 < each["anonymous"] <= each["pss"] for each in seen.values())


def test_rounds_begin_with_another_side_each_time() -> None:
    asked = list[str]()

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, ask: sides.Ask, tokens: Any = None, logits: bool = False) -> sides.Run:
            asked.append(self.name)
            return sides.Run(begin=1.0)

    named = {name: Named(name) for name in sides.NAMES}
    for turn in range(4):
        bench.one_round(named, ASK, turn, tiny(bench.QUICK[0]))
    assert asked[::3] == ["upstream", "eager", "runtime", "upstream"]
    assert all(set(asked[i : i + 3]) == set(sides.NAMES) for i in range(0, 12, 3))
    assert [bench.runs_of(name, None) for name in (bench.QUICK[0], bench.PLAIN)] == [5, 3]
    assert bench.runs_of(bench.PLAIN, 1) == 1


def test_distances() -> None:
    wanted = sides.Run(logits=[np.array([[[-4.0, 4.0]]], np.float32), np.zeros((1, 1, 2), np.float32)])
    off = sides.Run(logits=[np.array([[[-4.0, 4.1]]], np.float32), np.full((1, 1, 2), 0.01, np.float32)])
    assert bench.distance(wanted, off) == {"error": pytest.approx(0.025), "beyond": 0.75}
    broken = sides.Run(logits=[wanted.logits[0], np.full((1, 1, 2), np.nan, np.float32)])
    assert bench.distance(wanted, broken)["error"] == np.inf


def test_a_disturbed_eager_model_is_asked_only_where_the_runtime_is_far(ground: bench.Ground) -> None:
    chosen = tiny(bench.QUICK[1])
    opened = bench.opened(ground.files(chosen), ground.bundle(chosen), 1)
    first = bench.first_round(opened, ASK)
    far = replace(first[sides.RUNTIME], logits=[logits + 1 for logits in first[sides.RUNTIME].logits])
    assert bench.eager_moves(opened[sides.EAGER], first, ASK) is None
    moved = bench.eager_moves(opened[sides.EAGER], {**first, sides.RUNTIME: far}, ASK)
    assert moved is not None
    assert 1e-7 < moved < 1e-2


def case(name: str, upstream: float, runtime: float, memory: tuple[float, float] | None, error: float) -> Any:
    def side(seconds: float) -> Any:
        total = {"median": seconds, "low": seconds, "high": seconds, "runs": 3}
        return {"total": total, "begin": 0.1, "steps": [seconds], "noise": 0.0}

    return {
        "recipe": name,
        "run": "one",
        "sides": {"upstream": side(upstream), "eager": side(5.0), "runtime": side(runtime)},
        "memory": {}
        if memory is None
        else dict(zip(("upstream", "runtime"), ({"pss": m} for m in memory), strict=True)),
        "parity": {"runtime": {"error": error}, "upstream": {"error": 1e-6}, "eager": {"moves": None}},
    }


def test_bars() -> None:
    plain = case("infinity-125m-1m", 75.0, 60.0, (3e9, 2.5e9), 1e-5)
    pruned = case("infinity-125m-1m-fastvar", 15.0, 13.0, (2e9, 1.5e9), 2e-4)
    told = {
        (row["recipe"][len("infinity-125m-") :], row["what"]): (row["value"], row["met"])
        for row in bars([plain, pruned])
    }
    assert told == {
        ("1m", "times as fast as upstream's eager"): (pytest.approx(1.25), True),
        ("1m", "peak memory over upstream's"): (pytest.approx(2.5 / 3), False),
        ("1m", "error of logits under forced bits"): (1e-5, True),
        ("1m-fastvar", "times as fast as upstream's eager"): (pytest.approx(15 / 13), False),
        ("1m-fastvar", "times as fast as upstream's plain eager"): (pytest.approx(75 / 13), True),
        ("1m-fastvar", "peak memory over upstream's"): (0.75, True),
        ("1m-fastvar", "error of logits under forced bits"): (2e-4, False),
    }
    apart = {row["what"] for row in bars([plain | {"run": "another"}, pruned])}
    assert "times as fast as upstream's plain eager" not in apart, "of another run"
    only = bars([case("infinity-125m-1m-fastvar13", 20.0, 19.0, (2e9, 1.5e9), 1e-5)])
    assert [row["what"].split()[0] for row in only] == ["peak", "error"], "its time is reported, not judged"
    assert len(bars([case("infinity-125m-0.25m", 10.0, 9.0, None, 1e-5)])) == 1


def test_the_roofline_is_the_plan_s_at_the_reached_rates() -> None:
    chosen = tiny(bench.PLAIN)
    plan = bench.plan_for(chosen)
    found = rates(plan, 1, repeat=1)
    assert {(p["matrix"], p["rows"]) for p in found["products"]} == {(name, 18) for name in matrices(MODEL)}
    fast = reached(found)
    within = [rate for product in found["products"] for rate in product["gflops"].values()]
    assert min(within) <= fast.tflops["fp32"] * 1e3 <= max(within)
    long, short = (roofline(plan, replace(fast, bandwidth=1e9), n) for n in (512, 8))  # no traffic: work alone
    assert len(short["steps"]) == len(plan.steps)
    assert short["total"] == pytest.approx(short["begin"] + sum(short["steps"]))
    saved = 4 * 2 * 9 * 504 * MODEL.width * MODEL.depth  # scores and sums of both rows at the last step
    assert (long["steps"][-1] - short["steps"][-1]) * fast.tflops["fp32"] * 1e12 == pytest.approx(saved)


def test_integers_have_a_rate_of_their_own_and_what_is_float32_keeps_its() -> None:
    plan = bench.plan_for(tiny(bench.PLAIN))
    found = rates(plan, 1, repeat=1, integers=True)
    machine = replace(reached(found), bandwidth=1e9)  # no traffic: work alone
    twice = replace(machine, tflops={**machine.tflops, "int8": 2 * machine.tflops["fp32"]})
    single, whole = (roofline(plan, twice, precision=precision) for precision in ("fp32", "int8"))
    linear = [graph.flops.get("linear", 0.0) for graph in plan_cost(plan, 1, "int8").graphs]
    for i, each in enumerate(linear[1:-1]):
        saved = (single["steps"][i] - whole["steps"][i]) * machine.tflops["fp32"] * 1e12
        assert saved == pytest.approx(each / 2)
    assert single["decode"] == whole["decode"]
    within = [product["int8_gflops"] for product in found["products"]]
    assert min(within) <= machine.tflops["int8"] * 1e3 <= max(within)


def test_a_place_that_is_none_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["bench_infinity.py", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 2
    assert "cannot be a folder for results" in capsys.readouterr().err


def test_what_the_command_asks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = list[Any]()
    monkeypatch.setattr(bench, "bench_all", lambda *arguments: asked.append(arguments) or {})
    monkeypatch.setattr(bench, "tables", lambda report: "")
    results = tmp_path / "results"
    for words in (["--quick"], ["--bundles", str(tmp_path), "--check", "numbers", "--text", "20", "--no-memory"]):
        monkeypatch.setattr(sys, "argv", ["bench_infinity.py", "--out", str(results), *words])
        bench.main()
    (quick, ground, runs, out, memory), (every, other, *rest) = asked
    assert [chosen.name for chosen in quick] == list(bench.QUICK)
    assert (ground.check, ground.threads, ground.ask.text_tokens, runs, memory) == ("signatures", 2, 64, 1, True)
    assert not ground.folder.exists()
    assert out == results / machine_name(this_machine())
    assert out.is_dir()
    assert [chosen.name for chosen in every][2:] == [
        f"infinity-125m-1m{tail}" for tail in ("", "-fastvar", "-fastvar13")
    ]
    assert (other.folder, other.check, other.ask.text_tokens, rest[0], rest[2]) == (
        tmp_path,
        "numbers",
        20,
        None,
        False,
    )
