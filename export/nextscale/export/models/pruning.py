"""FastVAR's cached token pruning as one mechanism around any sub-layer (paper section 3; the sheet's section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nextscale.export.models.resize import Resize
from nextscale.plan.errors import PlanError
from nextscale.plan.types import Grid, Layer, SubLayer
from nextscale.plugins.scatter_restore import scatter_restore

Compute = Callable[[Tensor, Tensor | None], Tensor]


def token_scores(x: Tensor) -> Tensor:
    """Squared distance of each token from its row's mean token: (R, n, C) to (R, n), float32.

    Taken on the residual stream, before the norm; every guidance row by itself.
    """
    x = x.float()
    away = x - x.mean(dim=1, keepdim=True)
    return (away * away).sum(dim=-1)


def kept_index(x: Tensor, kept: int) -> Tensor:
    """Raster indices (R, kept) int64 of the highest scores, ascending."""
    return token_scores(x).topk(kept, dim=1).indices.sort(dim=1).values


def taken(x: Tensor, index: Tensor) -> Tensor:
    """Tokens (R, n, C) at (R, m): (R, m, C); whole rows of one matrix, which is the fast way for every library."""
    rows, n, width = x.shape
    first = torch.arange(rows, device=x.device).unsqueeze(1) * n  # of each row's tokens, (R, 1)
    return x.reshape(rows * n, width).index_select(0, (index + first).flatten()).reshape(rows, -1, width)


def run_sub_layers(
    x: Tensor,
    layer: Layer,
    computes: Mapping[str, Compute],
    grid: Grid,
    resize: Resize,
    caches: Mapping[str, tuple[Tensor, Grid]] | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A block's sub-layers in the order of ``computes``, each by :func:`run_sub_layer`.

    ``caches`` maps a sub-layer's name to its restore cache (R, hc * wc, C) and the cache's grid. Returns the residual
    stream (R, n, C) and the restore caches that the plan has written, by name.
    """
    written: dict[str, Tensor] = {}
    for name, compute in computes.items():
        cache, cache_grid = (caches or {}).get(name, (None, None))
        x, full = run_sub_layer(x, layer.sub_layer(name), compute, grid, resize, cache, cache_grid)
        if full is not None:
            written[name] = full
    return x, written


def run_sub_layer(
    x: Tensor,
    sub: SubLayer,
    compute: Compute,
    grid: Grid,
    resize: Resize,
    cache: Tensor | None,
    cache_grid: Grid | None,
) -> tuple[Tensor, Tensor | None]:
    """``x + sub-layer(x)`` for all tokens, or for the kept ones with the others restored from the cache.

    ``x`` (R, n, C) is the residual stream; ``compute`` maps tokens (R, m, C) and their raster indices (R, m), None for
    all, to their gated update (R, m, C), norm included; ``cache`` (R, hc * wc, C) is the same sub-layer's update at the
    cache scale. Returns the new residual stream and, where the plan has it written, the full update as the restore
    cache.
    """
    if sub.kept is None:
        update = compute(x, None)
        return x + update, update if sub.cache else None
    if cache is None or cache_grid is None:
        raise PlanError(f"{sub.name} keeps {sub.kept} tokens and has no restore cache for the others")
    index = kept_index(x, sub.kept)
    tokens = taken(x, index)
    matrices = (_area(resize, c, g, x) for c, g in zip(cache_grid, grid, strict=True))
    return scatter_restore(compute(tokens, index), index.to(torch.int32), cache, x, *matrices), None


def _area(resize: Resize, n_in: int, n_out: int, like: Tensor) -> Tensor:
    if n_in == n_out:
        return torch.eye(n_in, device=like.device)
    return resize.axis("area", n_in, n_out, like.device)
