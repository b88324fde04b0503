"""Upstream's code behind the face of a comparison makes our eager side's pictures of its tokens, also in autocast."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from support import drawn, drawn_infinity
from upstream_infinity import UpstreamInfinity
from upstream_side import UpstreamSide, in_half, upstream_side

from nextscale.compare.sides import Ask, EagerSide
from nextscale.export.bundle import prepared
from nextscale.export.eager import Eager
from nextscale.export.models import ops
from nextscale.plan.methods.fastvar import FastVAR

VAR = FastVAR({-1: 0.5}, -2)(drawn.full_plan())
INFINITY = FastVAR({-2: 0.4, -1: 0.5}, -3, layers=(1, 2))(drawn_infinity.infinity_chain())
ASKS = {"classes": Ask((3, 1), 5, 4.0, 0.95, 0.8), "a text": Ask((2,), 5, 3.0, 0.97, 0.5)}


def eager_of(name: str) -> Eager:
    return drawn.drawn_eager(VAR) if name == "classes" else drawn_infinity.eager_of(INFINITY)


def side_of(eager: Eager, compute: torch.dtype | None = None) -> UpstreamSide:
    checkpoint: Any = SimpleNamespace(var=eager.var, vae=eager.vae)
    return upstream_side(checkpoint, eager.plan, compute)


@pytest.mark.parametrize("name", ASKS)
def test_pictures_are_those_of_our_eager_model(name: str) -> None:
    eager, ask = eager_of(name), ASKS[name]
    wanted = EagerSide(eager).run(ask, logits=True)
    made = side_of(eager).run(Ask(**{**vars(ask), "tokens": wanted.tokens}), logits=True)
    for got, logits in zip(made.logits, wanted.logits, strict=True):
        assert float(np.abs(got - logits).max()) <= 1e-4 * max(1.0, float(logits.std()))
    np.testing.assert_allclose(made.pictures, wanted.pictures, atol=1e-4)
    assert all(np.array_equal(a, b) for a, b in zip(made.tokens, wanted.tokens, strict=True))
    assert list(made.seconds) == ["begin", *(f"step_{step.order:02d}" for step in eager.plan.steps), "decode"]


@pytest.mark.parametrize("name", ASKS)
def test_autocast_is_near_float32_and_not_equal(name: str) -> None:
    """bfloat16 keeps 8 bits, so a logit of a few layers is off by some hundredths; float32 by a millionth."""
    eager, ask = eager_of(name), ASKS[name]
    wanted = side_of(eager).run(ask, logits=True)
    forced = Ask(**{**vars(ask), "tokens": wanted.tokens})
    made = side_of(eager, torch.bfloat16).run(forced, logits=True)
    errors = [
        float(np.abs(got - logits).max()) / max(1.0, float(logits.std()))
        for got, logits in zip(made.logits, wanted.logits, strict=True)
    ]
    assert 1e-4 < max(errors) < 0.4
    assert made.pictures.dtype == np.float32
    assert float(np.abs(made.pictures - wanted.pictures).mean()) < 0.02
    dtypes = {parameter.dtype for parameter in eager.var.parameters()}
    assert dtypes == {torch.float32}, "the checkpoint's own weights stay as they are, whatever is cast for upstream"
    assert not torch.backends.cuda.matmul.allow_tf32, "as before"


def test_infinity_keeps_what_upstream_keeps_in_the_dtypes_of_upstream() -> None:
    """The sheet, sections 2.6 and 4.2: keys float32 and values half; restore caches half, float32 and float32."""
    eager = eager_of("a text")
    model = UpstreamInfinity.over(INFINITY, eager.var.state_dict())
    in_half(model, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        text = model.begin(torch.from_numpy(drawn_infinity.prompt(2, 4)[0][:4]))
        for _ in model.stream(text, 3.0, 0.5, 0.97, 7):
            keys, values = model.blocks[0].sa.past or (None, None)
            assert keys is not None
            assert values is not None
            assert (keys.dtype, values.dtype) == (torch.float32, torch.bfloat16)
    assert text.shared.dtype == torch.float32
    assert {name: cache.dtype for name, cache in model.blocks[0].caches.items()} == {
        "sa": torch.bfloat16,
        "ca": torch.float32,
        "ffn": torch.float32,
    }


@pytest.mark.parametrize("name", ASKS)
def test_our_eager_model_attends_in_half_precision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's flash attention takes, but for the one query that pools a text."""
    eager, ask, seen = eager_of(name), ASKS[name], set[tuple[torch.dtype, bool]]()
    own = ops.F.scaled_dot_product_attention

    def watched(q: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen.update((each.dtype, name == "a text" and q.shape[2] == 1) for each in (q, *rest))
        return own(q, *rest, **more)

    monkeypatch.setattr(ops.F, "scaled_dot_product_attention", watched)
    checkpoint: Any = SimpleNamespace(var=eager.var, vae=eager.vae)
    EagerSide(prepared(checkpoint, eager.plan, "bf16")).run(ask)
    assert {single for dtype, single in seen if dtype == torch.float32} == ({True} if name == "a text" else set())
    assert any(dtype == torch.bfloat16 for dtype, _ in seen)


def test_a_text_is_one_picture() -> None:
    with pytest.raises(ValueError, match="too many values"):
        side_of(eager_of("a text")).run(Ask((1, 2), 0, 3.0, 0.97, 0.5))
