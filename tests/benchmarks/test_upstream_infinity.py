"""What the runtime is measured against is the same model: upstream's way of running it under our own forced bits."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
import upstream_blocks
import upstream_infinity as upstream
from support.drawn_infinity import OBLONG, PATCHED, SQUARE, eager_of, infinity_chain, prompt
from torch import Tensor

from nextscale.export.eager import Eager, Request
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.types import Plan

SETTINGS = {"guidance_scale": 3.0, "temperature": 0.5, "top_p": 0.97}
# Two pruned scales restored from a third's caches; and the last one not run at all.
TWICE, SKIPPED = FastVAR({-2: 0.4, -1: 0.5}, -3, layers=(1, 2)), FastVAR({-2: 0.4}, -3, layers=(1, 3), skip=(-1,))
PLANS = {
    "plain": infinity_chain(),
    "oblong": infinity_chain(OBLONG),
    "patched": infinity_chain(SQUARE, PATCHED),
    "pruned": TWICE(infinity_chain()),
    "pruned oblong": TWICE(infinity_chain(OBLONG)),
    "skipped": SKIPPED(infinity_chain(SQUARE, PATCHED)),
}


def ours(plan: Plan, length: int = 4) -> tuple[Eager, Request, list[Tensor], list[Tensor], Tensor]:
    """The eager model, what it was asked, and its own bits, logits and code sum."""
    eager = eager_of(plan)
    request = Request([prompt(2, length)], seed=5, **SETTINGS)
    run = [step.prediction for step in eager.stream(request)]
    return eager, request, [p.tokens for p in run], [p.logits for p in run], run[-1].code_sum


def theirs(plan: Plan, eager: Eager, tokens: list[Tensor] | None, length: int = 4) -> list[upstream.Made]:
    model = upstream.UpstreamInfinity.over(plan, eager.var.state_dict())
    text = model.begin(torch.from_numpy(prompt(2, length)[0][:length]))
    return list(model.stream(text, 3.0, 0.5, 0.97, 7, tokens))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("length", [1, 6])
def test_it_is_the_same_model(name: str, length: int) -> None:
    plan = PLANS[name]
    eager, _, tokens, logits, code_sum = ours(plan, length)
    made = theirs(plan, eager, tokens, length)
    for wanted, got in zip(logits, made, strict=True):
        assert float((got.logits - wanted).abs().max()) <= 1e-4 * max(1.0, float(wanted.std()))
    torch.testing.assert_close(made[-1].code_sum.squeeze(2), code_sum, rtol=0, atol=1e-5)


def test_a_folded_model_is_taken_as_well() -> None:
    plan = PLANS["pruned"]
    eager, _, tokens, _, _ = ours(plan)
    exact = theirs(plan, eager, tokens)
    eager.var.fold()
    for a, b in zip(exact, theirs(plan, eager, tokens), strict=True):
        assert torch.equal(a.logits, b.logits)


def test_mistakes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PLANS["pruned"]
    eager, _, tokens, logits, _ = ours(plan)
    own = upstream_blocks.at
    monkeypatch.setattr(upstream_blocks, "at", lambda rope, index: own(rope, None if index is None else index.flip(1)))
    made = theirs(plan, eager, tokens)
    errors = [float((got.logits - wanted).abs().max()) for got, wanted in zip(made, logits, strict=True)]
    assert max(errors[:2]) < 1e-4 < min(errors[2:]) / 100


def test_it_remembers_as_upstream_does() -> None:
    """All scales' rows, the last one's too, while it runs; restore caches of all layers, also afterwards."""
    plan = PLANS["pruned"]
    eager = eager_of(plan)
    model = upstream.UpstreamInfinity.over(plan, eager.var.state_dict())
    text = model.begin(torch.from_numpy(prompt(2, 4)[0][:4]))
    for _ in model.stream(text, 3.0, 0.5, 0.97, 7):
        rows = [block.sa.past[0].shape[2] for block in model.blocks if block.sa.past is not None]
    kept = [
        sum(layer.sub_layer("sa").kept or step.tokens_in for layer in step.layers if layer.index == 1)
        for step in plan.steps
    ]
    assert rows == [39, sum(kept), sum(kept), 39]
    assert {tuple(t.shape) for block in model.blocks for t in block.caches.values()} == {(2, 4, 64)}
    assert all(set(block.caches) == {"sa", "ca", "ffn"} and block.sa.past is None for block in model.blocks)


def test_sampling_keeps_what_the_filter_lets_through() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.tensor([[[0.0, 4.0], [4.0, 0.0], [0.0, 3.0]]]).expand(1, 3, 2).repeat(1, 500, 1)
    drawn = upstream.sample(logits.clone(), 0.97, generator).view(500, 3)
    assert (drawn[:, 0] == 1).all(), "a value of 1.8 % is dropped"
    assert (drawn[:, 1] == 0).all()
    assert 5 <= int((drawn[:, 2] == 0).sum()) <= 50, "one of 4.7 % is not"
