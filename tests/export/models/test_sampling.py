"""Guidance, filters and sampling against plain re-statements of upstream's rules (the sheet, section 1.5)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from nextscale.export.models.sampling import filtered, guided, gumbel, sample, smooth_weights
from nextscale.plan.schedules import squares, var_guidance
from nextscale.runtime.noise import uniforms

VOCABULARY = 11
NEAR = 1e-5  # mass this close to 1 - top_p may fall to either side: sums are float32 here, float64 in the rule
MAYBE = 2


def survivors(logits: NDArray[np.float32], top_k: int, top_p: float) -> NDArray[np.int_]:
    """Upstream's two filters on one token's logits (V,): 1 stays, 0 falls, MAYBE is within rounding.

    Value by value, so that ties share a fate: top-k drops what is strictly below the k-th largest; then a value falls
    when it and all smaller ones hold at most 1 - top_p of the mass, and the largest never does.
    """
    values = logits.astype(np.float64)
    if 0 < top_k < len(values):
        values[values < np.sort(values)[-top_k]] = -np.inf
    mass = np.exp(values - values.max())
    mass /= mass.sum()
    fate = (values > -np.inf).astype(int)
    if top_p >= 1:
        return fate
    for i, value in enumerate(values):
        up_to_here = mass[values <= value].sum()
        if fate[i] and value < values.max():
            fate[i] = MAYBE if abs(up_to_here - (1 - top_p)) < NEAR else up_to_here > 1 - top_p
    return fate


def logits_of(seed: int, tied: bool, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Normal values, or few different ones."""
    random = np.random.default_rng(seed)
    values = random.integers(-3, 3, shape) / 2 if tied else random.standard_normal(shape) * 2
    return values.astype(np.float32)


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**16),
    tied=st.booleans(),
    top_k=st.one_of(st.sampled_from([0, 1, VOCABULARY, VOCABULARY + 5]), st.integers(2, VOCABULARY - 1)),
    top_p=st.lists(
        st.one_of(st.just(1.0), st.floats(2.0**-20, 1.0, width=32, exclude_min=True)), min_size=1, max_size=3
    ),
)
def test_filters_are_upstream_s(seed: int, tied: bool, top_k: int, top_p: list[float]) -> None:
    logits = logits_of(seed, tied, (len(top_p), 4, VOCABULARY))
    found = filtered(torch.from_numpy(logits), top_k, torch.tensor(top_p)).numpy()
    for image, p in enumerate(top_p):
        for token in range(logits.shape[1]):
            before, after = logits[image, token], found[image, token]
            fate = survivors(before, top_k, p)
            stays = after > -np.inf
            assert (stays[fate != MAYBE] == fate[fate != MAYBE]).all()
            assert (after[stays] == before[stays]).all()
            assert stays[before == before.max()].all()


def upstream_top_p(logits: Tensor, top_p: float) -> Tensor:
    """The same rule as upstream computes it, over sorted values, where no two of them tie."""
    ascending, order = logits.sort(dim=-1)
    fall = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    fall[..., -1] = False
    return logits.masked_fill(torch.zeros_like(fall).scatter(-1, order, fall), -torch.inf)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
def test_top_p_at_a_published_vocabulary(top_p: float) -> None:
    logits = torch.from_numpy(logits_of(3, False, (1, 6, 4096)))
    assert torch.equal(filtered(logits, 0, torch.tensor([top_p])), upstream_top_p(logits, top_p))


def test_values_that_tie_with_the_kth_survive() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0, 1.0, 0.0, 1.0]]])
    kept = filtered(logits, 3, torch.tensor([1.0]))
    assert (kept > -torch.inf).tolist() == [[[True, True, True, True, False, True]]]


def test_top_p_counts_ties_beyond_top_k() -> None:
    """Five values survive top-k of 2, so the two larger of the ties hold less than their share of two values would."""
    logits = torch.tensor([[[2.0, 1.0, 1.0, 1.0, 1.0, 0.0]]])
    largest = float(torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0]).softmax(0)[0])  # 0.40
    for p, survive in ((largest - 0.01, 1), (largest + 0.01, 5)):
        assert int((filtered(logits, 2, torch.tensor([p])) > -torch.inf).sum()) == survive


def test_all_equal_logits_all_stay() -> None:
    assert torch.equal(filtered(torch.zeros(2, 3, 7), 2, torch.tensor([0.1, 1.0])), torch.zeros(2, 3, 7))


def noise(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(uniforms(seed, 0, 0, 0, int(np.prod(shape)))).reshape(shape)


def nothing_forced(images: int, tokens: int) -> Tensor:
    return torch.full((images, tokens), -1, dtype=torch.int32)


def test_sampling_is_the_race_of_exponentials() -> None:
    """``torch.multinomial`` is argmax(p / E), E exponential (the sheet, 1.5); here E = -log u."""
    logits = torch.from_numpy(logits_of(1, False, (2, 50, 64)))
    u = noise(5, 2, 50, 64)
    race = logits.double().softmax(dim=-1) / -u.double().log()
    best = race.topk(2, dim=-1).values
    clear = best[..., 0] > best[..., 1] * (1 + 1e-5)
    tokens = sample(logits, u, nothing_forced(2, 50))
    assert tokens.dtype == torch.int32
    assert clear.float().mean() > 0.9
    assert torch.equal(tokens[clear], race.argmax(dim=-1).to(torch.int32)[clear])


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits, draws = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf]), 20_000
    tokens = sample(logits.expand(1, draws, 5), noise(7, 1, draws, 5), nothing_forced(1, draws))
    found = torch.bincount(tokens.flatten(), minlength=5).double() / draws
    wanted = logits.double().softmax(0)
    assert found[4] == 0
    assert ((found - wanted).abs() < 5 * (wanted * (1 - wanted) / draws).sqrt() + 1e-12).all()


def test_the_ends_of_the_noise_are_finite() -> None:
    ends = torch.tensor([0.5 * 2.0**-23, 1 - 2.0**-24])
    assert gumbel(ends).isfinite().all()
    assert gumbel(ends).tolist() == pytest.approx([-math.log(24 * math.log(2)), 24 * math.log(2)], rel=1e-6)


def test_forced_tokens_win_and_the_others_are_sampled_as_ever() -> None:
    logits, u = torch.from_numpy(logits_of(2, False, (2, 5, 8))), noise(9, 2, 5, 8)
    free = sample(logits, u, nothing_forced(2, 5))
    tokens = nothing_forced(2, 5)
    tokens[0, 1], tokens[1, 4] = 0, 7
    forced = sample(logits, u, tokens)
    assert forced[0, 1] == 0
    assert forced[1, 4] == 7
    assert torch.equal(forced[tokens < 0], free[tokens < 0])


def test_a_forced_token_may_be_one_that_filters_drop() -> None:
    logits = filtered(torch.tensor([[[5.0, 0.0, -5.0]]]), 1, torch.tensor([1.0]))
    assert sample(logits, noise(0, 1, 1, 3), torch.tensor([[2]], dtype=torch.int32)).tolist() == [[2]]


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_smoothing_is_the_sheet_s_formula(ratio: float) -> None:
    """softmax((l (1 + r) + G) / tau), tau = max(0.27 (1 - 0.95 r), 0.005), G = -log E, E = -log u."""
    logits = filtered(torch.from_numpy(logits_of(4, False, (1, 6, 32))), 20, torch.tensor([0.9]))
    u = noise(11, 1, 6, 32)
    exponential = -u.double().log()
    tau = max(0.27 * (1 - 0.95 * ratio), 0.005)
    wanted = ((logits.double() * (1 + ratio) - exponential.log()) / tau).softmax(dim=-1)
    weights = smooth_weights(logits, u, ratio)
    torch.testing.assert_close(weights.double(), wanted, rtol=0, atol=2e-4)  # tau magnifies float32's rounding
    assert (weights[logits == -torch.inf] == 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(1, 6))


def test_guidance_is_a_weight_per_row_and_picture() -> None:
    rows = torch.from_numpy(logits_of(6, False, (6, 2, 5)))  # 3 guidance rows of 2 pictures
    weights = torch.tensor([[1.0, 0.5, -2.0], [3.0, 0.0, 0.25]])
    wanted = torch.stack([sum(weights[b, g] * rows[2 * g + b] for g in range(3)) for b in range(2)])  # type: ignore[misc]
    torch.testing.assert_close(guided(rows, weights), wanted)


def test_the_ramp_of_guidance_is_upstream_s() -> None:
    """(1 + t) conditional - t unconditional, t = cfg * scale / (K - 1)."""
    schedule, cfg = squares(1, 2, 3, 4), 4.0
    conditional, unconditional = torch.from_numpy(logits_of(8, False, (2, 1, 3, 5))).unbind(0)
    for scale, row_weights in enumerate(var_guidance(schedule).weights):
        t = cfg * scale / 3
        weights = torch.tensor([[constant + slope * cfg for constant, slope in row_weights]])
        wanted = (1 + t) * conditional - t * unconditional
        torch.testing.assert_close(guided(torch.cat((conditional, unconditional)), weights), wanted)
