"""FastVAR on plans: kept counts, tapes, caches, skipped scales, the published numbers, and every refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.errors import PlanError
from nextscale.plan.methods import FastVAR
from nextscale.plan.methods.fastvar import kept_tokens
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Grid, Model, Plan, Sampling, Tokenizer

TOKENIZER = Tokenizer(160, (1, 1, 2, 2, 4), 3, 32, 4096, 16)


def plain(grids: tuple[Grid, ...], depth: int = 4, sub_layers: tuple[str, ...] = ("attn", "ffn")) -> Plan:
    model = Model("var", depth, 64 * depth, depth, 64, 256 * depth, 4096, 32, 1000, sub_layers)
    return next_scale_plan("plain", model, TOKENIZER, grids, Sampling(900))


def test_var_256_pruned_at_the_last_two_scales() -> None:
    plan = FastVAR({-2: 0.4, -1: 0.6}, cache_scale=-3, layers=(1, -1))(plain(schedule("var-256")))
    before_last, last = plan.steps[8], plan.steps[9]
    assert [sub.kept for sub in before_last.layers[1].sub_layers] == [102, 102]  # 169 - int(67.6)
    assert [sub.kept for sub in last.layers[3].sub_layers] == [103, 103]  # 256 - int(153.6)
    assert [layer.past_rows for layer in last.layers] == [424, 357, 357, 357]
    assert [plan.tape_rows(tape.id) for tape in plan.tapes] == [424, 357, 357, 357]
    assert [sub.kept for sub in last.layers[0].sub_layers] == [None, None]
    assert {cache.id for cache in plan.caches} == {f"{sub}.{i:02d}" for sub in ("attn", "ffn") for i in (1, 2, 3)}
    assert {cache.grid for cache in plan.caches} == {(10, 10)}
    writers = [s.order for s in plan.steps for lay in s.layers for sub in lay.sub_layers if sub.cache and not sub.kept]
    assert writers == [7] * 6
    assert plan.methods == ("FastVAR(ratios={8: 0.4, 9: 0.6}, cache_scale=7, layers=(1, -1))",)


def infinity_1m() -> Plan:
    return FastVAR({9: 0.4, 10: 0.5}, cache_scale=8, layers=(3, 27), skip=(11, 12))(
        plain(schedule("infinity-1m"), depth=32, sub_layers=("sa", "ca", "ffn"))
    )


def test_infinity_as_upstream_runs_it() -> None:
    """Fact sheet 4.2: 11 passes; 4121 tokens in unpruned layers, 2912 in pruned ones; 615 and 800 kept."""
    plan = infinity_1m()
    assert len(plan.steps) == 11
    computed = {
        i: sum(s.tokens_in if s.layers[i].sub_layers[0].kept is None else s.layers[i].sub_layers[0].kept or 0
               for s in plan.steps)
        for i in (0, 2, 3, 27, 28)
    }  # fmt: skip
    assert computed == {0: 4121, 2: 4121, 3: 2912, 27: 2912, 28: 4121}
    assert plan.steps[10].layers[3].past_rows == 1497 + 615
    assert plan.steps[10].next_input.grid is None
    assert not any(layer.writes for layer in plan.steps[10].layers)
    assert plan.final_grid == (64, 64)
    assert len(plan.caches) == 25 * 3


def test_hart_as_upstream_runs_it() -> None:
    """5227 tokens instead of 9451, all layers, from caches of 36 x 36."""
    plan = FastVAR({12: 0.5, 13: 0.75}, cache_scale=11)(plain(schedule("var-1024")))
    assert sum(step.layers[0].sub_layers[0].kept or step.tokens_in for step in plan.steps) == 5227
    assert {cache.grid for cache in plan.caches} == {(36, 36)}


def test_a_scale_in_the_middle_can_be_skipped() -> None:
    plan = FastVAR({}, cache_scale=0, skip=(5,))(plain(schedule("var-256")))
    assert [step.scale for step in plan.steps] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [step.order for step in plan.steps] == list(range(9))
    assert plan.steps[4].next_input.grid == (8, 8)
    assert [step.layers[0].past_rows for step in plan.steps[5:]] == [55, 119, 219, 388]


def test_only_some_sub_layers() -> None:
    plan = FastVAR({9: 0.5}, cache_scale=8, sub_layers=("ffn",))(plain(schedule("var-256")))
    assert [sub.kept for sub in plan.steps[9].layers[0].sub_layers] == [None, 128]
    plan = FastVAR({8: 0.5}, cache_scale=7, sub_layers=("ffn",))(plain(schedule("var-256")))
    assert plan.steps[9].layers[0].past_rows == 424  # attention is full, so the tapes are


def test_two_methods_compose() -> None:
    """Two scales by two applications are one method that names both; skipping after pruning is skipping with it."""
    base = plain(schedule("var-256"))
    once = FastVAR({8: 0.4, 9: 0.6}, 7)(base)
    twice = FastVAR({8: 0.4}, 7)(FastVAR({9: 0.6}, 7)(base))
    assert replace(twice, methods=()) == replace(once, methods=())
    later = FastVAR({}, 0, skip=(9,))(FastVAR({8: 0.4, 9: 0.6}, 7)(base))
    together = FastVAR({8: 0.4}, 7, skip=(9,))(base)
    assert replace(later, methods=()) == replace(together, methods=())


ratios = st.floats(0, 1, exclude_max=True)


@given(
    grids=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=3, max_size=7),
    first=ratios,
    second=ratios,
    layers=st.none() | st.tuples(st.integers(0, 1), st.integers(1, 3)),
    skip_last=st.booleans(),
)
def test_any_schedule_and_ratio(
    grids: list[Grid], first: float, second: float, layers: tuple[int, int] | None, skip_last: bool
) -> None:
    base = plain(tuple(grids))
    ratio = {-2: first} if skip_last else {-2: first, -1: second}
    plan = FastVAR(ratio, cache_scale=-3, layers=layers, skip=(-1,) if skip_last else ())(base)
    assert len(plan.steps) == len(grids) - skip_last
    rows = dict.fromkeys(range(4), 0)
    read = set()
    for step, full in zip(plan.steps, base.steps, strict=False):
        assert (step.grid, step.tokens_in, step.sampling) == (full.grid, full.tokens_in, full.sampling)
        for layer in step.layers:
            assert layer.past_rows == rows[layer.index]
            kept = {sub.kept for sub in layer.sub_layers}
            assert len(kept) == 1  # attention and ffn alike
            count = kept.pop() or step.tokens_in
            assert 1 <= count <= step.tokens_in
            rows[layer.index] += count
            read |= {sub.cache for sub in layer.sub_layers if sub.kept is not None}
            assert bool(layer.writes) == (step is not plan.steps[-1])
    assert {cache.id for cache in plan.caches} == read  # nothing is cached that nobody reads
    assert all(cache.grid == grids[-3] for cache in plan.caches)


@given(n=st.integers(1, 5000), ratio=ratios)
def test_kept_is_at_least_one(n: int, ratio: float) -> None:
    assert 1 <= kept_tokens(n, ratio) <= n


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (FastVAR({9: 1.0}, 7), r"scale 9 cannot be pruned by 1.0: a ratio is 0 or more and below 1"),
        (FastVAR({9: -0.1}, 7), "scale 9 cannot be pruned by -0.1"),
        (FastVAR({7: 0.5}, 7), "scale 7 cannot be restored from cache scale 7"),
        (FastVAR({8: 0.5}, 9), "the cache scale must come before every pruned scale"),
        (FastVAR({9: 0.5, -1: 0.5}, 7), "a scale is named twice"),
        (FastVAR({12: 0.5}, 7), "scale 12 is asked for; the plan has 10, numbered 0 to 9"),
        (FastVAR({9: 0.5}, 7, skip=(-1,)), "scale 9 is both pruned and skipped"),
        (FastVAR({9: 0.5}, 7, skip=(7,)), "cache scale 7 is skipped"),
        (FastVAR({9: 0.5}, 7, layers=(1, 4)), "layer 4 is asked for; the plan has 4, numbered 0 to 3"),
        (FastVAR({9: 0.5}, 7, layers=(3, 1)), "layers 3 to 1 are asked for"),
        (FastVAR({9: 0.5}, 7, sub_layers=("sa",)), "sub-layer 'sa' is to be pruned; the model's blocks have attn, ffn"),
        (FastVAR({}, 0, skip=(0,)), "the first step cannot be dropped"),
        (FastVAR({}, 0, skip=(9, -1)), r"a scale is named twice in the skip \(9, -1\)"),
        (FastVAR({9: 0.0}, 7, layers=(50, 60)), "layer 50 is asked for; the plan has 4, numbered 0 to 3"),
        (FastVAR({9: 0.0}, 7, layers=(3, 1)), "layers 3 to 1 are asked for"),
        (FastVAR({}, 0, layers=(50, 60), skip=(9,)), "layer 50 is asked for"),
        (FastVAR({9: 0.0}, 7, sub_layers=("sa",)), "sub-layer 'sa' is to be pruned"),
        (FastVAR({9: 0.5}, 7, sub_layers=()), "sub_layers names none that prunes: name one or more, or leave it out"),
    ],
)
def test_what_does_not_fit_is_refused(method: FastVAR, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        method(plain(schedule("var-256")))


def test_a_ratio_of_zero_keeps_everything() -> None:
    base = plain(schedule("var-256"))
    kept = FastVAR({9: 0.0}, 7, layers=(1, -1), sub_layers=("ffn",))(base)
    assert replace(kept, methods=()) == replace(base, methods=())


def test_skipping_twice_is_refused() -> None:
    once = FastVAR({}, 0, skip=(9,))(plain(schedule("var-256")))
    with pytest.raises(PlanError, match="scale 9 is to be skipped, but the plan does not run it"):
        FastVAR({}, 0, skip=(-1,))(once)


def test_pruning_twice_is_refused() -> None:
    once = FastVAR({9: 0.5}, 7)(plain(schedule("var-256")))
    with pytest.raises(PlanError, match="layer 0, attn: another method pruned it already"):
        FastVAR({9: 0.5}, 7)(once)
    with pytest.raises(PlanError, match=r"restore cache 'attn.00' is written at scale 7 by another method"):
        FastVAR({8: 0.5}, 6)(once)
    with pytest.raises(PlanError, match="cache scale 9 is pruned itself"):
        FastVAR({10: 0.5}, 9)(FastVAR({9: 0.5}, 7)(plain((*schedule("var-256"), (20, 20)))))
    with pytest.raises(PlanError, match="scale 9 is to be pruned, but the plan does not run it"):
        FastVAR({9: 0.5}, 7)(FastVAR({}, 0, skip=(9,))(plain(schedule("var-256"))))
