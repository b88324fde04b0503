"""FastVAR's mechanism: which tokens are kept, and how the others are restored (the sheet, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from nextscale.export.models.pruning import kept_index, run_sub_layer, token_scores
from nextscale.export.models.resize import Resize
from nextscale.plan.types import Grid, SubLayer


@dataclass(frozen=True)
class Drawn:
    """A pruned sub-layer's sizes and the seed of its values."""

    grid: Grid
    cache_grid: Grid
    kept: int
    rows: int
    width: int
    seed: int

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """Residual stream (R, n, C), restore cache (R, hc * wc, C), the weight (C, C) of a sub-layer."""
        random = np.random.default_rng(self.seed)
        shapes = ((self.rows, n, self.width) for n in (_tokens(self.grid), _tokens(self.cache_grid), self.width))
        x, cache, weight = (torch.from_numpy(random.standard_normal(s).astype(np.float32)) for s in shapes)
        return x * 3, cache, weight[0]


def _tokens(grid: Grid) -> int:
    return grid[0] * grid[1]


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    """Grids up to 7 by 7 and cache grids up to 9 by 9, so smaller, larger or both; every keep count from 1 to n."""
    grid = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    return Drawn(
        grid,
        cache_grid=draw(st.tuples(st.integers(1, 9), st.integers(1, 9))),
        kept=draw(st.integers(1, _tokens(grid))),
        rows=draw(st.integers(1, 4)),
        width=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 2**16)),
    )


@settings(deadline=None, max_examples=80)
@given(drawn())
def test_kept_tokens_are_the_top_scores_in_raster_order(case: Drawn) -> None:
    x, _, _ = case.values()
    index = kept_index(x, case.kept)
    assert index.shape == (case.rows, case.kept)
    assert (index.diff(dim=1) > 0).all()
    for row in range(case.rows):
        distance = ((x[row] - x[row].mean(dim=0)) ** 2).sum(dim=1).numpy()
        kept = np.isin(np.arange(len(distance)), index[row].numpy())
        if not kept.all():
            assert distance[kept].min() >= distance[~kept].max() - 1e-5 * distance.max()


@settings(deadline=None, max_examples=80)
@given(drawn())
def test_restored_is_the_pooled_cache_with_fresh_tokens_over_it(case: Drawn) -> None:
    x, cache, weight = case.values()
    seen: list[tuple[Tensor, Tensor | None]] = []

    def compute(tokens: Tensor, places: Tensor | None) -> Tensor:
        seen.append((tokens, places))
        return torch.tanh(tokens @ weight)

    sub = SubLayer("ffn", kept=case.kept, cache="c")
    found, written = run_sub_layer(x, sub, compute, case.grid, Resize(), cache, case.cache_grid)
    places = kept_index(x, case.kept)
    index = places.unsqueeze(-1).expand(-1, -1, case.width)
    pooled = F.adaptive_avg_pool2d(cache.transpose(1, 2).unflatten(2, case.cache_grid), case.grid)
    restored = pooled.flatten(2).transpose(1, 2).scatter(1, index, torch.tanh(x.gather(1, index) @ weight))
    torch.testing.assert_close(found, x + restored, rtol=1e-5, atol=1e-5)
    assert written is None
    ((tokens, told),) = seen  # once, for the kept tokens, with their places
    assert torch.equal(tokens, x.gather(1, index))
    assert told is not None
    assert torch.equal(told, places)


@settings(deadline=None, max_examples=30)
@given(drawn())
def test_keeping_every_token_is_the_full_sub_layer(case: Drawn) -> None:
    x, cache, weight = case.values()

    def compute(tokens: Tensor, places: Tensor | None) -> Tensor:
        assert (places is None) == (tokens is x)
        return torch.tanh(tokens @ weight)

    everything = SubLayer("ffn", _tokens(case.grid), "c")
    kept_all, _ = run_sub_layer(x, everything, compute, case.grid, Resize(), cache, case.cache_grid)
    full, update = run_sub_layer(x, SubLayer("ffn", None, "c"), compute, case.grid, Resize(), None, None)
    assert update is not None
    torch.testing.assert_close(kept_all, full)
    assert torch.equal(full, x + update)


def test_only_a_sub_layer_that_names_a_cache_leaves_one() -> None:
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    for cache, left in ((None, False), ("c", True)):
        sub = SubLayer("attn", None, cache)
        found = run_sub_layer(x, sub, lambda tokens, _: tokens.tanh(), (2, 3), Resize(), None, None)
        assert (found[1] is not None) == left


def test_scores_are_squared_distances_to_the_row_s_mean() -> None:
    x = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [2.0, 6.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    assert token_scores(x).tolist() == [[8.0, 8.0, 16.0], [0.0, 0.0, 0.0]]
    assert kept_index(x, 1)[0].tolist() == [2]


def test_each_row_is_scored_by_itself() -> None:
    x = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(1))
    moved = x.clone()
    moved[2] = moved[2] * 50 + 7
    assert torch.equal(token_scores(x)[:2], token_scores(moved)[:2])
    torch.testing.assert_close(token_scores(x[1:2]), token_scores(x)[1:2])
    assert len({tuple(row) for row in kept_index(x, 8).tolist()}) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_float32_whatever_the_stream_is(dtype: torch.dtype) -> None:
    """Distances beyond 65504 would be infinite in float16, and tie."""
    x = (torch.randn(1, 30, 64, generator=torch.Generator().manual_seed(2)) * 200).to(dtype)
    scores = token_scores(x)
    assert scores.dtype == torch.float32
    assert scores.max() > 65504
    assert torch.equal(scores, token_scores(x.float()))


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_a_common_offset_keeps_the_same_tokens(shift: float) -> None:
    x = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.5, 2, 40)[None, :, None]
    offset = torch.linspace(-1, 1, 16) * shift
    assert torch.equal(kept_index(x, 15), kept_index(x + offset, 15))


def test_tokens_that_tie_fill_the_count() -> None:
    index = kept_index(torch.ones(2, 9, 4), 5)
    assert all(len(set(row)) == 5 for row in index.tolist())
    assert (index.diff(dim=1) > 0).all()


def test_area_enlarges_as_the_sheet_says() -> None:
    """24 to 32 of a ramp: 0, 0.5, 1.5, 2, 3, 3.5, 4.5, 5 ..., averages of one or two neighbours."""
    ramp = torch.arange(24.0).reshape(1, 24, 1)
    x = torch.zeros(1, 32, 1)
    x[0, 31] = 1e6  # the one token that is kept
    sub = SubLayer("ffn", 1, "c")
    found, _ = run_sub_layer(x, sub, lambda tokens, _: tokens * 0, (1, 32), Resize(), ramp, (1, 24))
    assert found[0, :8, 0].tolist() == [0.0, 0.5, 1.5, 2.0, 3.0, 3.5, 4.5, 5.0]
