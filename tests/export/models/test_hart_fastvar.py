"""FastVAR's pruning in HART's blocks."""

from __future__ import annotations

from dataclasses import replace

import torch
from support.drawn_hart import PRUNE, SCHEDULE, chain, drawn_hart, eager_of, subjects
from torch import Tensor

from nextscale.export.eager import Eager, EagerStep, Request
from nextscale.export.models.pruning import kept_index
from nextscale.plan.types import Layer, SubLayer

WHOLE = Layer(0, (SubLayer("attn"), SubLayer("ffn")))
REQUEST = Request(subjects(6, 1, 4), seed=2, guidance_scale=3.0)


def run(eager: Eager, request: Request = REQUEST) -> list[EagerStep]:
    return list(eager.stream(request))


def tokens(steps: list[EagerStep]) -> dict[int, Tensor]:
    return {i: step.prediction.tokens for i, step in enumerate(steps)}


def test_pruning_leaves_earlier_steps_and_moves_later_ones() -> None:
    plain, pruned = eager_of(chain()), eager_of(PRUNE(chain()))
    forced = tokens(run(plain))
    a, b = (run(eager, replace(REQUEST, tokens=forced)) for eager in (plain, pruned))
    for i, (one, other) in enumerate(zip(a, b, strict=True)):
        same = torch.allclose(one.prediction.logits, other.prediction.logits, atol=1e-5)
        assert same == (i < 2)
    assert {layer.sub_layer("ffn").kept for layer in pruned.plan.steps[3].layers} == {10}


def test_kept_tokens_turn_at_their_own_places() -> None:
    """Keys of a pruned attention are those of the whole one, at the places of the kept tokens, row by row."""
    hart, step = drawn_hart(), PRUNE(chain()).steps[3]
    x = torch.randn(2, 25, 64, generator=torch.Generator().manual_seed(0))
    rotation = hart.rotation(step, {"position": torch.tensor([4.0, 0.0])})
    block, layer = hart.layer(0), step.layers[0]
    caches = {name: (torch.zeros(2, 4, 64), SCHEDULE[1]) for name in ("attn", "ffn")}
    full = block(x, {}, WHOLE, step.grid, hart.resize, rotation=rotation)
    kept = block(x, {}, layer, step.grid, hart.resize, caches=caches, rotation=rotation)
    index = kept_index(x, 10)
    assert not torch.equal(index[0], index[1])
    for rows, of in ((kept.key, full.key), (kept.value, full.value)):
        wanted = torch.stack([of[index[row], row] for row in range(2)], dim=1)
        torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-5)
    assert kept.caches == {}


def test_caches_hold_updates_without_gates() -> None:
    hart, step = drawn_hart(), PRUNE(chain()).steps[1]
    x = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))
    out = hart.layer(0)(x, {}, step.layers[0], step.grid, hart.resize)
    torch.testing.assert_close(x + out.caches["attn"] + out.caches["ffn"], out.x)
