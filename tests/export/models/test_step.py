"""The end of a step: bits drawn one by one, stages in the plan's order, codes that a diffusion refines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn import drawn_vae, drawn_var, full_plan
from support.drawn_infinity import drawn_bsq, drawn_infinity, infinity_chain
from torch import Tensor

from nextscale.export.models.step import Draw, Prediction, after_head, drawn_from, no_tokens, predict, shaped
from nextscale.export.models.var import VAR
from nextscale.plan.errors import PlanError
from nextscale.plan.families.infinity import INFINITY_SAMPLING
from nextscale.plan.types import Sampling

NEAR = 1e-5


def uniforms(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).clamp(1e-6, 1 - 1e-6)


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def draw_of(images: int, n: int, outputs: int, draws: tuple[int, ...] = (), **changed: Any) -> Draw:
    """Two guidance rows at a weight of 3, temperatures and top_p of their own for every picture."""
    free = torch.full((images, n, *draws), -1, dtype=torch.int32)
    draw = Draw(
        torch.tensor([[3.0, -2.0]] * images),
        torch.linspace(0.5, 1.5, images),
        torch.linspace(0.97, 0.7, images),
        uniforms(7, images, n, outputs),
        free,
    )
    return draw._replace(**changed)


@settings(deadline=None, max_examples=40)
@given(images=st.integers(1, 3), n=st.integers(1, 6), bits=st.integers(1, 5), seed=st.integers(0, 999))
def test_bits_are_drawn_by_their_plain_definition(images: int, n: int, bits: int, seed: int) -> None:
    """Rows over temperature, then guided; of each pair the unlikely value falls at a probability of at most 1 - p."""
    rows = 4 * torch.randn(2 * images, n, 2 * bits, generator=torch.Generator().manual_seed(seed))
    draw = draw_of(images, n, 2 * bits, (bits,))
    guided, left = shaped(rows, INFINITY_SAMPLING, draw, 2)
    assert guided.shape == (images, n, 2 * bits)
    assert left.shape == (images, n * bits, 2)
    for image in range(images):
        tau, p = float(draw.temperature[image]), float(draw.top_p[image])
        wanted = (3 * rows[image].double() - 2 * rows[images + image].double()) / tau
        torch.testing.assert_close(guided[image].double(), wanted, rtol=1e-5, atol=1e-4)
        pairs = guided[image].double().reshape(n * bits, 2)
        likely = pairs.softmax(dim=-1)
        clear = ((likely.amin(dim=-1) - (1 - p)).abs() > NEAR) & (pairs[:, 0] != pairs[:, 1])
        stays = likely > 1 - p
        stays |= likely == likely.amax(dim=-1, keepdim=True)
        assert torch.equal((left[image] > -torch.inf)[clear], stays[clear])
    drawn = drawn_from(guided, INFINITY_SAMPLING, draw, 2)
    assert torch.equal(drawn, left)


def predicted(step_index: int = 3, **changed: Any) -> tuple[Prediction, Draw]:
    """An Infinity's step from given logits, two pictures."""
    plan = infinity_chain()
    step = plan.steps[step_index]
    rows = torch.randn(4, step.tokens_out, 16, generator=torch.Generator().manual_seed(1))
    draw = draw_of(2, step.tokens_out, 16, (8,), **changed)
    return after_head(plan, step, drawn_bsq().quantize, rows, draw, None), draw


def test_a_bit_is_the_argmax_of_its_pair_s_logits_and_noise() -> None:
    done, draw = predicted(top_p=torch.ones(2))
    race = done.logits - torch.log(-torch.log(draw.noise))
    assert torch.equal(done.tokens, race.unflatten(-1, (8, 2)).argmax(dim=-1).to(torch.int32))
    assert done.tokens.shape == draw.tokens.shape
    assert 0.3 < done.tokens.float().mean() < 0.7


def test_forced_bits_stand_and_the_others_are_drawn_as_ever() -> None:
    free, draw = predicted()
    tokens = draw.tokens.clone()
    tokens[:, ::2, 3:] = 1 - free.tokens[:, ::2, 3:]
    forced, _ = predicted(tokens=tokens)
    assert torch.equal(forced.tokens, torch.where(tokens >= 0, tokens, free.tokens))


def test_a_temperature_behind_guidance_is_the_same_as_one_before_it() -> None:
    rows, draw = normals(20, 4, 5, 6), draw_of(2, 5, 6, (3,))
    behind = replace(INFINITY_SAMPLING, order=("guidance", "temperature", "top_k", "top_p"))
    first, second = (shaped(rows, sampling, draw, 2) for sampling in (INFINITY_SAMPLING, behind))
    torch.testing.assert_close(first[0], second[0] / draw.temperature[:, None, None], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first[1], second[1], rtol=1e-5, atol=1e-5)


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(PlanError, match="'top_q' is unknown"):
        shaped(torch.zeros(4, 5, 6), Sampling(0, order=("guidance", "top_q")), draw_of(2, 5, 6), 6)


class Refining(VAR):
    """A VAR whose residual diffusion adds a number for each place of a token's codes."""

    def refine(self, x: Tensor, codes: Tensor, guidance: Tensor, noise: Tensor) -> Tensor:
        self.given = (x, codes, guidance, noise)
        return torch.arange(codes[0].numel(), dtype=torch.float32).reshape(1, *codes.shape[1:]) * torch.ones(2, 1, 1)


@pytest.mark.parametrize("smooth", [False, True])
def test_a_diffusion_refines_the_codes_of_its_step(smooth: bool) -> None:
    """It is given the drawn tokens' codes, also where the mixture of all is what it is added to."""
    plan, vae = full_plan(smooth=smooth), drawn_vae()
    var = Refining(plan.model(), plan.schedule).requires_grad_(False)
    plain = replace(plan.steps[-1], next_input=replace(plan.steps[-1].next_input, phi=None))
    step, n, v = replace(plain, diffusion=True), plain.tokens_out, plan.model().vocabulary
    x, head, before = normals(21, 4, n, 64), normals(22, 4, 2, 64), normals(23, 2, 32, 5, 5)
    draw = draw_of(2, n, v, smooth_noise=uniforms(9, 2, n, v), diffusion_noise=uniforms(8, 2, n, 8, 32))
    done = predict(plan, step, var, vae.quantize, x, head, draw, before)
    without = predict(plan, plain, var, vae.quantize, x, head, draw, before)
    assert torch.equal(done.tokens, without.tokens)
    added = torch.arange(n * 32.0).reshape(n, 32).T.reshape(32, 5, 5).expand(2, -1, -1, -1)
    torch.testing.assert_close(done.code_sum, without.code_sum + added, rtol=1e-5, atol=1e-3)
    seen = dict(zip(("x", "codes", "guidance", "noise"), var.given, strict=True))
    assert torch.equal(seen["codes"], vae.quantize.embedding(done.tokens))
    assert torch.equal(seen["x"], x)
    assert torch.equal(seen["noise"], draw.diffusion_noise)  # type: ignore[arg-type]


def test_a_diffusion_without_its_noise_is_refused() -> None:
    plan, var = full_plan(), drawn_var()
    step = replace(plan.steps[-1], diffusion=True)
    draw = draw_of(2, step.tokens_out, plan.model().vocabulary)
    with pytest.raises(PlanError, match="needs that noise"):
        predict(plan, step, var, drawn_vae().quantize, torch.zeros(4, 25, 64), torch.zeros(4, 2, 64), draw, None)


def test_the_head_reads_the_last_tokens() -> None:
    plan, var = infinity_chain(), drawn_infinity()
    step, head = plan.steps[1], normals(24, 4, 2, 64)
    x = normals(25, 4, 9, 64)
    draw = draw_of(2, 4, 16, (8,))
    long, short = (predict(plan, step, var, drawn_bsq().quantize, t, head, draw, None) for t in (x, x[:, -4:]))
    assert torch.equal(long.logits, short.logits)
    assert long.next_map is not None
    assert long.next_map.shape == (2, 9, 8)


def test_bits_cannot_be_mixed() -> None:
    plan = infinity_chain()
    step = replace(plan.steps[0], sampling=replace(INFINITY_SAMPLING, smooth=True))
    draw = draw_of(2, 1, 16, (8,))._replace(smooth_noise=torch.full((2, 1, 16), 0.5))
    with pytest.raises(PlanError, match="tokenizer with a codebook"):
        after_head(plan, step, drawn_bsq().quantize, torch.zeros(4, 1, 16), draw, None)


def test_a_step_that_does_not_sample_is_refused() -> None:
    plan = infinity_chain()
    step = replace(plan.steps[0], sampling=None)
    with pytest.raises(PlanError, match="does not sample"):
        after_head(plan, step, drawn_bsq().quantize, torch.zeros(4, 1, 16), draw_of(2, 1, 16, (8,)), None)


def test_nothing_is_forced_by_default() -> None:
    step = infinity_chain().steps[2]
    assert no_tokens(3, step).shape == (3, 9)
    assert no_tokens(3, step, (8,)).shape == (3, 9, 8)
    assert (no_tokens(3, step, (8,)) == -1).all()
