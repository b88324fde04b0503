"""Is a difference the bundle's, or can eager PyTorch itself not tell? A question asked only where numbers differ.

A pruned step keeps its highest-scoring tokens. Where two scores at the cut tie to rounding, two correct
implementations may keep different ones, and everything after differs. No tolerance for logits can allow for that
without allowing for errors. So the eager model is run again with its residual stream disturbed by what rounding does:
where its own logits move beyond the tolerance, the picture decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nextscale.compare.parity import PictureParity, moved
from nextscale.compare.sides import Ask, EagerSide, Run, Side
from nextscale.export.models.contract import Transformer

# Relative size of a token's disturbance: some dozens of roundings of float32, one of an update in half precision.
DISTURBANCE = {"fp32": 2.0**-18, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0**-18}
TRIALS = 8  # two tied tokens change places in about half of them


def explained(
    found: Sequence[PictureParity], side: Side, ask: Ask, reference: Run, precision: str, tolerance: float
) -> list[PictureParity]:
    """The same pictures; those that differ by more than the tolerance say how far ``side``, the reference, moves."""
    if not any(p.error > tolerance for p in found) or not isinstance(side, EagerSide):
        return list(found)
    moves = eager_moves(side, ask, reference, precision, tolerance)
    return [
        replace(p, eager_moves=float(move)) if p.error > tolerance else p for p, move in zip(found, moves, strict=True)
    ]


def eager_moves(side: EagerSide, ask: Ask, reference: Run, precision: str, enough: float) -> NDArray[np.float64]:
    """How far each picture's logits move under forced tokens; trials end once every picture moved by ``enough``."""
    forced = replace(ask, tokens=reference.tokens)
    worst = np.zeros(len(ask.labels))
    for trial in range(TRIALS):
        with disturbed(side.eager.var, DISTURBANCE[precision], trial):
            run = side.run(forced, logits=True)
        worst = np.maximum(worst, moved(reference.logits, run.logits, precision))
        if (worst > enough).all():
            break
    return worst


@contextmanager
def disturbed(var: Transformer, size: float, seed: int) -> Iterator[None]:
    """Inside, every token of the residual stream is scaled by 1 + ``size`` * a normal number before every block."""
    generator = torch.Generator().manual_seed(seed)

    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x: Tensor = arguments[0]
        factors = 1 + size * torch.randn((*x.shape[:-1], 1), generator=generator)
        return x * factors.to(x.device), *arguments[1:]

    remove: list[Callable[[], None]] = []
    try:
        remove += [var.layer(i).register_forward_pre_hook(hook).remove for i in range(var.model.depth)]
        yield
    finally:
        for undo in remove:
            undo()
