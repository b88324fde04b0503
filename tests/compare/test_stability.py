"""What eager PyTorch does not decide itself: made here by a model in which all tokens are alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support import tiny

from nextscale.compare.judge import verdict
from nextscale.compare.parity import PictureParity, PictureStep, drawn_tokens, moved
from nextscale.compare.sides import Ask, EagerSide
from nextscale.compare.stability import disturbed, eager_moves, explained
from nextscale.export.eager import Eager
from nextscale.export.models.var import VAR
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import plan_for, recipe

TOLERANCE = 1e-4
ASK = Ask((1, 7), seed=3, guidance_scale=1.5, top_p=0.9, temperature=1.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads of so small a model wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def side(pruned: bool = False, tied: bool = False) -> EagerSide:
    plan = plan_for(recipe("var-d16"), tiny.MODEL, tiny.TOKENIZER, tiny.SCHEDULE, tiny.SAMPLING)
    plan = FastVAR({-1: 0.5}, cache_scale=-2)(plan) if pruned else plan
    torch.manual_seed(0)
    var, vae = VAR(tiny.MODEL, tiny.SCHEDULE), VQVAE(tiny.TOKENIZER, len(tiny.SCHEDULE), encoder=False)
    if tied:
        with torch.no_grad():
            var.word_embed.weight.zero_()
            var.pos_1LC.zero_()
    return EagerSide(Eager(plan, var, vae))


@pytest.mark.parametrize("pruned", [False, True])
def test_a_model_without_ties_holds_still(pruned: bool) -> None:
    eager = side(pruned)
    run = eager.run(ASK, logits=True)
    moves = eager_moves(eager, ASK, run, "fp32", TOLERANCE)
    assert moves.shape == (2,)
    assert (moves > 0).all()
    assert (moves < TOLERANCE).all()


def test_tied_scores_are_seen() -> None:
    eager = side(pruned=True, tied=True)
    run = eager.run(ASK, logits=True)
    assert (eager_moves(eager, ASK, run, "fp32", TOLERANCE) > TOLERANCE).all()


def test_the_same_model_in_full_has_nothing_to_tie() -> None:
    eager = side(tied=True)
    run = eager.run(ASK, logits=True)
    assert (eager_moves(eager, ASK, run, "fp32", TOLERANCE) < TOLERANCE).all()


@pytest.mark.parametrize(("tied", "undecided"), [(True, True), (False, False)])
def test_only_a_picture_that_differs_is_asked_about(tied: bool, undecided: bool) -> None:
    eager = side(pruned=True, tied=tied)
    run = eager.run(ASK, logits=True)
    fine, bad = (PictureParity((PictureStep(error, 0.5, 1.0, 1.0),), 0.0) for error in (1e-6, 0.3))
    first, second = explained([fine, bad], eager, ASK, run, "fp32", TOLERANCE)
    assert first is fine
    assert second.eager_moves is not None
    assert (second.eager_moves > TOLERANCE) == undecided
    assert verdict("b", [fine, fine, second], TOLERANCE).held == undecided


def test_a_disturbance_ends() -> None:
    eager = side()
    before = eager.run(ASK, logits=True)
    with disturbed(eager.eager.var, 0.1, seed=0):
        during = eager.run(dataclasses.replace(ASK, tokens=before.tokens), logits=True)
    after = eager.run(ASK, logits=True)
    assert not np.array_equal(before.logits[-1], during.logits[-1])
    assert np.array_equal(before.logits[-1], after.logits[-1])


def test_what_is_drawn_from_logits_is_what_was_sampled() -> None:
    eager = side(pruned=True)
    run = eager.run(ASK, logits=True)
    for step, logits, tokens in zip(eager.eager.plan.steps, run.logits, run.tokens, strict=True):
        assert np.array_equal(drawn_tokens(eager.eager.plan, step, ASK, logits), tokens)


def test_forced_tokens_are_taken() -> None:
    eager = side()
    tokens = tuple(np.full((2, step.tokens_out), 5, np.int32) for step in eager.eager.plan.steps)
    run = eager.run(dataclasses.replace(ASK, tokens=tokens))
    assert all(np.array_equal(a, b) for a, b in zip(run.tokens, tokens, strict=True))
    assert run.logits == ()


def test_of_int8_the_mean_counts_and_not_the_largest() -> None:
    before = [np.zeros((2, 4, 25), np.float32)]
    after = [before[0].copy()]
    after[0][1, 0, 0] = 0.5
    np.testing.assert_allclose(moved(before, after), [0, 0.5])
    np.testing.assert_allclose(moved(before, after, "int8"), [0, 0.05])
