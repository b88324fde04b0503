"""FastVAR as upstream's eager code runs it, around the sub-layers of any block (the sheet's section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.plan.types import Grid, Layer

Compute = Callable[[Tensor, Tensor | None], Tensor]  # tokens (R, m, C) and their indices (R, m) to their update


class Remembering(nn.Module):
    """A block that keeps its sub-layers' updates at the cache scale: ``caches``, (R, n, C) each."""

    def __init__(self) -> None:
        super().__init__()
        self.caches: dict[str, Tensor] = {}

    def updated(
        self, x: Tensor, computes: Mapping[str, Compute], layer: Layer, grid: Grid, cached: Grid | None
    ) -> Tensor:
        """The residual stream (R, n, C) of a scale through the sub-layers in their order.

        ``cached`` is the cache scale's grid, None where nothing is pruned.
        """
        for name, compute in computes.items():
            kept = layer.sub_layer(name).kept
            if kept is not None and cached is not None:
                x = x + self._pruned(name, x, compute, kept, grid, cached)
                continue
            update = compute(x, None)
            if grid == cached:
                self.caches[name] = update  # in every layer, read or not
            x = x + update
        return x

    def _pruned(self, name: str, x: Tensor, compute: Compute, kept: int, grid: Grid, cached: Grid) -> Tensor:
        """The update of all tokens: fresh where they are kept, else the cache's, resized by area."""
        distance = (x - x.mean(dim=1, keepdim=True)).square().sum(dim=-1)
        index = distance.argsort(dim=1, descending=True)[:, :kept]  # (R, kept)
        places = index.unsqueeze(-1).expand(-1, -1, x.shape[-1])
        fresh = compute(x.gather(1, places), index)
        small = self.caches[name].transpose(1, 2).unflatten(2, cached)
        full = F.adaptive_avg_pool2d(small, grid).flatten(2).transpose(1, 2).contiguous()
        return full.scatter_(1, places, fresh)
