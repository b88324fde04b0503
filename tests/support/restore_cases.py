"""Drawn inputs of ScatterRestore: any grids, keep counts, ties, rows and dtypes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from nextscale.plan.resize import area_matrix

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
# Of kept and cache, then of the residual.
DTYPES = ((torch.float32, torch.float32), (torch.float16, torch.float32), (torch.float16, torch.float16))


@dataclass(frozen=True)
class Case:
    """A size of the operator and the seed of its values."""

    grid: tuple[int, int]
    cache_grid: tuple[int, int]
    kept: int
    rows: int = 2
    width: int = 8
    dtypes: tuple[torch.dtype, torch.dtype] = DTYPES[0]
    ties: bool = False
    seed: int = 0

    def inputs(self) -> Inputs:
        """kept, index, cache, residual, row_matrix, column_matrix."""
        random = np.random.default_rng(self.seed)
        (h, w), (hc, wc) = self.grid, self.cache_grid

        def draw(dtype: torch.dtype, *shape: int) -> Tensor:
            # Tied values are few and exact in float16, so that a mistake in where they come from still shows.
            values = random.integers(-2, 3, shape) if self.ties else random.standard_normal(shape)
            return torch.from_numpy(values.astype(np.float32)).to(dtype)

        index = np.stack([np.sort(random.permutation(h * w)[: self.kept]) for _ in range(self.rows)])
        part, full = self.dtypes
        return (
            draw(part, self.rows, self.kept, self.width),
            torch.from_numpy(index.astype(np.int32)),
            draw(part, self.rows, hc * wc, self.width),
            draw(full, self.rows, h * w, self.width),
            torch.from_numpy(area_matrix(hc, h)),
            torch.from_numpy(area_matrix(wc, w)),
        )


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[tuple[torch.dtype, torch.dtype], ...] = DTYPES) -> Case:
    """Grids and cache grids of any sides up to 12, so growing, shrinking or both; all keep counts from 1 to n."""
    side = st.integers(1, 12)
    grid = draw(st.tuples(side, side))
    return Case(
        grid=grid,
        cache_grid=draw(st.tuples(side, side)),
        kept=draw(st.integers(1, grid[0] * grid[1])),
        rows=draw(st.integers(1, 4)),
        width=draw(st.integers(1, 9)),
        dtypes=draw(st.sampled_from(dtypes)),
        ties=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """For sums of the same float32 numbers in another order, rounded to ``dtype`` at the end."""
    return {"rtol": 1e-3, "atol": 1e-3} if dtype == torch.float16 else {"rtol": 1e-5, "atol": 1e-5}


def between_two_halves() -> tuple[Inputs, Tensor]:
    """float16 inputs whose pruned tokens come to 2050 if sums are float32, and to 2048 if the resize is rounded first.

    The mean of 1 and 1 + 2**-10 lies between two float16 numbers, as does its sum with 2048. Also says which tokens
    are pruned, (R, n) bool.
    """
    kept, index, cache, residual, rows, columns = Case((2, 1), (2, 2), kept=1, dtypes=(torch.float16,) * 2).inputs()
    cache = torch.tensor([1.0, 1.0 + 2**-10], dtype=torch.float16).repeat(2)[None, :, None].expand_as(cache)
    pruned = torch.ones(residual.shape[:2], dtype=torch.bool).scatter(1, index.long(), False)
    return (kept, index, cache.contiguous(), torch.full_like(residual, 2048.0), rows, columns), pruned
