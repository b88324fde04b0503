"""The drift benchmark: its islands compute the same in float32, its counting is right, its tables are the results."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

for needed in ("torch", "matplotlib"):
    pytest.importorskip(needed)
REPOSITORY = Path(__file__).parents[2]

import bench_precision as bench  # noqa: E402
import torch  # noqa: E402
from precision_islands import ISLANDS, Island, halved, recording, standardised, total  # noqa: E402
from precision_tables import tables  # noqa: E402
from precision_tallies import Errors, Matches, share  # noqa: E402
from support.drawn import drawn_eager, full_plan  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from nextscale.export.components import compute_in  # noqa: E402
from nextscale.export.eager import Eager, Request  # noqa: E402
from nextscale.export.models import attention, layers, pruning, step, var  # noqa: E402
from nextscale.export.models.step import Prediction  # noqa: E402
from nextscale.plan.methods import FastVAR  # noqa: E402

RESULTS = REPOSITORY / "benchmarks" / "results"
REQUEST = Request([1, 3], seed=5, guidance_scale=2.0, top_p=0.9)


def pruned() -> Eager:
    return drawn_eager(FastVAR({-1: 0.5}, cache_scale=-2)(full_plan()))


def truth(eager: Eager) -> list[Prediction]:
    with recording():
        return [one.prediction for one in eager.stream(REQUEST)]


@pytest.mark.parametrize("island", ISLANDS, ids=lambda island: island.halve.__name__)
def test_an_island_that_is_halved_to_float32_changes_nothing(island: Island) -> None:
    """Its replacement is the same mathematics, written again."""
    eager = pruned()
    wanted = truth(eager)
    with halved(island, torch.float32):
        got = bench.run_forced(eager, REQUEST, wanted)
        pixels = eager.decode(got[-1].code_sum)
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(b.logits, a.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(b.code_sum, a.code_sum, rtol=0, atol=1e-5)
        assert torch.equal(a.tokens, b.tokens)
    np.testing.assert_allclose(pixels, eager.decode(wanted[-1].code_sum), atol=1e-4)


@pytest.mark.parametrize("island", [i for i in ISLANDS if i.recipe == "full"], ids=lambda island: island.halve.__name__)
def test_an_island_in_half_is_another_computation(island: Island) -> None:
    wanted = truth(pruned())
    plain, other = pruned(), pruned()
    compute_in(plain.var.fold(), plain.vae.fold(), torch.bfloat16)
    expected = bench.run_forced(plain, REQUEST, wanted)
    with halved(island, torch.bfloat16):
        compute_in(other.var.fold(), other.vae.fold(), torch.bfloat16)
        got = bench.run_forced(other, REQUEST, wanted)
        pixels = other.decode(got[-1].code_sum)
    same = [
        *(
            torch.equal(a.logits, b.logits) and torch.equal(a.tokens, b.tokens)
            for a, b in zip(expected, got, strict=True)
        ),
        np.array_equal(pixels, plain.decode(expected[-1].code_sum)),
    ]
    assert not all(same)


def test_scores_in_half_tie_where_float32_tells_apart() -> None:
    x = torch.randn(1, 256, 64, generator=torch.Generator().manual_seed(0))
    (island,) = (i for i in ISLANDS if i.halve.__name__ == "pruning_scores")
    exact = pruning.token_scores(x).unique().numel()
    with halved(island, torch.bfloat16):
        assert pruning.token_scores(x).unique().numel() < exact / 2


def test_what_float32_kept_is_kept_again() -> None:
    x, y = torch.randn(2, 2, 9, 4, generator=torch.Generator().manual_seed(0))
    with recording():
        kept = [pruning.kept_index(x, 5), pruning.kept_index(x, 3)]
    with halved(ISLANDS[-1], torch.float16):
        assert torch.equal(pruning.kept_index(y, 5), kept[0])
        assert torch.equal(pruning.kept_index(y, 3), kept[1])
    assert not torch.equal(pruning.kept_index(y, 5), kept[0])


def test_what_was_replaced_is_put_back() -> None:
    owners = [(attention, "unit"), (attention, "attention"), (layers, "layer_norm"), (step, "shaped")]
    owners += [(pruning, "kept_index"), (var.VAR, "embed"), (var.VAR, "FLOAT32")]
    before = [getattr(owner, name) for owner, name in owners]
    for island in ISLANDS:
        with halved(island, torch.float16):
            pass
    with halved(None, torch.float16):
        assert [getattr(owner, name) for owner, name in owners] == before
    assert [getattr(owner, name) for owner, name in owners] == before


def test_forcing_a_model_s_own_tokens_is_its_own_run() -> None:
    eager = pruned()
    wanted = truth(eager)
    for a, b in zip(wanted, bench.run_forced(eager, REQUEST, wanted), strict=True):
        assert torch.equal(a.logits, b.logits)
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.code_sum, b.code_sum)


def test_forced_tokens_are_the_past_and_draws_are_its_own() -> None:
    eager = pruned()
    wanted = truth(eager)
    others = [p._replace(tokens=(p.tokens + 1) % 48) for p in wanted]
    got = bench.run_forced(eager, REQUEST, others)
    assert torch.equal(got[0].tokens, wanted[0].tokens), "no past yet"
    assert not torch.equal(got[1].logits, wanted[1].logits)
    assert not torch.equal(got[0].code_sum, wanted[0].code_sum)


def test_sums_round_every_addition() -> None:
    x = torch.ones(3, 4097, dtype=torch.float16)
    assert total(x).dtype == torch.float16
    assert total(x).flatten().tolist() == [4096.0] * 3  # 4097 is no float16
    assert total(torch.full((2,), 40_000.0, dtype=torch.float16)).item() == math.inf
    exact = torch.randn(2, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(total(exact), exact.sum(-1, keepdim=True))
    torch.testing.assert_close(standardised(exact, 1e-6), F.layer_norm(exact, (37,), eps=1e-6))


def test_errors_are_counted() -> None:
    errors = Errors()
    values = np.array([1.0, 2.0, 3.0, 6.0], np.float32)
    errors.add(values[:2], values[:2] + np.float32(0.5))
    errors.add(values[2:], values[2:] - np.array([0.0, 2.0], np.float32))
    assert errors.std == pytest.approx(float(values.std()))
    assert errors.rms == pytest.approx(math.sqrt((0.25 + 0.25 + 4.0) / 4))
    assert errors.largest == 2.0
    errors.add(values, np.full(4, np.nan, np.float32))
    errors.add(values, values)
    assert math.isnan(errors.largest)
    assert share([Matches(1, 4), Matches(2, 2)]) == 0.5


def test_batches_have_seeds_of_their_own() -> None:
    eager = pruned()
    eager.plan = replace(eager.plan, defaults=(("guidance_scale", 2.0), ("top_p", 0.9), ("temperature", 1.0)))
    first, second, other = (bench.request_of(n, 16, eager, seed) for n, seed in ((0, 7), (1, 7), (1, 8)))
    assert [r.seed for r in (first, second, other)] == [7, 8, 9]
    assert list(first.subjects) == [i % 5 for i in range(16)]
    assert list(second.subjects) == [i % 5 for i in range(16, 32)]


def test_a_small_run_fills_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = REPOSITORY / "checkpoints" / "demo"
    monkeypatch.setattr(bench, "EXPORTED", bench.EXPORTED[:1])
    monkeypatch.setattr(bench, "HALVED", [v for v in bench.HALVED if v.precision == "fp16"][-1:])
    checkpoint = bench.load_checkpoint(folder / "var.safetensors", folder / "vae.safetensors")
    told: list[tuple[int, int]] = []
    free, forced = bench.measure(
        checkpoint,
        bench.load_judge(folder / "judge.safetensors"),
        bench.Counts(pictures=2, forced=1, batch=1),
        lambda stage, done, total, what: told.append((done, total)),
    )
    assert told == [(i, 8) for i in range(8)]
    report = bench.report_of(free, forced)
    (exported,), (kept,) = report["exported"], report["islands"]
    assert (exported["recipe"], exported["precision"]) == ("full", "fp16")
    assert (kept["recipe"], kept["island"]) == ("fastvar", "nothing, tokens kept as in float32")
    for row in (exported, kept):
        assert 1e-4 < row["rms"] < 0.01 < 0.9 < row["equal_forced"] <= 1
        assert row["rms"] <= row["rms_worst_step"] < row["largest"]
        assert len(row["steps"]) == len(checkpoint.schedule)
    assert all(len(one.right) == 2 for one in free.values())
    assert exported["equal_free"] <= 1
    assert exported["loss"] == pytest.approx(exported["accuracy_fp32"] - exported["accuracy"])


def test_the_committed_tables_are_of_the_committed_figures() -> None:
    report = json.loads((RESULTS / "precision.json").read_text(encoding="utf-8"))
    assert tables(report) == (RESULTS / "precision.md").read_text(encoding="utf-8")
    assert {row["island"] for row in report["islands"]} == {island.what for island in ISLANDS}
    assert len(report["exported"]) == 4
    assert "not measured on hardware yet" in report["settings"]["how"]
