"""Resizing maps by one matrix per axis, the same in eager PyTorch and in every graph."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nextscale.export.models.ops import linear
from nextscale.plan.resize import resize_matrix
from nextscale.plan.types import Grid, Plan


class Resize(nn.Module):
    """``out = M_h @ x @ M_w^T`` with the matrices of :mod:`nextscale.plan.resize`: area, bicubic, bilinear.

    The matrices are buffers named ``<mode>_<n_in>_<n_out>`` of shape (n_out, n_in), float32. They are made by
    :meth:`prepare`, so that a traced graph takes them as (derived) weights and all steps share one copy of each.
    """

    def prepare(self, needed: Iterable[tuple[str, int, int]], device: torch.device | None = None) -> None:
        """Makes the matrices of ``(mode, n_in, n_out)`` that are not there yet; an unknown mode is an InputError."""
        for mode, n_in, n_out in needed:
            name = f"{mode}_{n_in}_{n_out}"
            if n_in != n_out and name not in self._buffers:
                matrix = torch.tensor(resize_matrix(mode, n_in, n_out), device=device)
                self.register_buffer(name, matrix, persistent=False)

    def axis(self, mode: str, n_in: int, n_out: int, device: torch.device) -> Tensor:
        """The matrix (n_out, n_in) of one axis; a new one is made on ``device``."""
        self.prepare([(mode, n_in, n_out)], device)
        return self.get_buffer(f"{mode}_{n_in}_{n_out}")

    def forward(self, x: Tensor, grid: Grid, mode: str) -> Tensor:
        """``x`` (..., h, w) float32 to (..., *grid); an axis that keeps its length is left alone."""
        h, w = x.shape[-2:]
        if h != grid[0]:
            x = self.axis(mode, h, grid[0], x.device) @ x
        if w != grid[1]:
            x = linear(x, self.axis(mode, w, grid[1], x.device))
        return x


def resizes_of(plan: Plan) -> set[tuple[str, int, int]]:
    """Every ``(mode, n_in, n_out)`` that a plan's steps use, for codes, next inputs and restore caches."""
    needed: set[tuple[str, int, int]] = set()

    def add(mode: str, source: Grid, target: Grid) -> None:
        needed.update((mode, i, o) for i, o in zip(source, target, strict=True))

    for step in plan.steps:
        add(step.next_input.up, plan.latents(step.grid), plan.code_grid)
        if step.next_input.grid:
            add(step.next_input.down, plan.code_grid, plan.latents(step.next_input.grid))
        for sub in (sub for layer in step.layers for sub in layer.sub_layers):
            if sub.kept is not None and sub.cache is not None:
                add("area", plan.cache(sub.cache).grid, step.grid)
    return needed
