"""The eager transformer against itself: one pass or many, one picture or three, folded or not."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.drawn import MODEL, OBLONG, SQUARE, drawn_eager, drawn_var, full_plan
from torch import Tensor
from torch.nn import functional as F

from nextscale.export.eager import Eager, EagerStep, Request, State
from nextscale.export.models.attention import SelfAttention
from nextscale.export.models.step import Draw
from nextscale.export.models.var import VAR
from nextscale.plan.types import Grid, Model

VARIANTS = {
    "as published": MODEL,
    "shared adaLN": replace(MODEL, shared_adaln=True),
    "no l2 norm": replace(MODEL, qk_norm=False),
    "one wide head": replace(MODEL, heads=1, head_dim=64),
}


def run(eager: Eager, **request: object) -> list[EagerStep]:
    return list(eager.stream(Request(**{"subjects": [1, 4], "guidance_scale": 2.0, "top_p": 0.9, **request})))  # type: ignore[arg-type]


def tokens(steps: list[EagerStep]) -> dict[int, Tensor]:
    return {i: step.prediction.tokens for i, step in enumerate(steps)}


def logits(steps: list[EagerStep]) -> Tensor:
    """All scales in one, (B, L, V)."""
    return torch.cat([step.prediction.logits for step in steps], dim=1)


def maps(steps: list[EagerStep]) -> Tensor:
    """The input maps of scales 1 and on, (B, L - 1, Z)."""
    return torch.cat([m for step in steps if (m := step.prediction.next_map) is not None], dim=1)


@pytest.mark.parametrize("schedule", [SQUARE, OBLONG], ids=["square", "oblong"])
@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_one_pass_of_teacher_forcing_is_the_chain(model: Model, schedule: tuple[Grid, ...]) -> None:
    """Step by step over tapes without a mask, and all tokens at once under the block-causal mask, are one model."""
    eager = drawn_eager(full_plan(model, schedule))
    steps = run(eager, guidance_scale=0.0)  # weights (1, 0): the conditional row's own logits
    at_once = eager.var(torch.tensor([1, 4]), maps(steps))
    assert float(at_once.std()) > 1
    torch.testing.assert_close(at_once, logits(steps), rtol=1e-4, atol=1e-4)


def test_teacher_forcing_sees_no_later_scale() -> None:
    eager = drawn_eager(full_plan())
    given = maps(run(eager))
    changed = given.clone()
    changed[:, 4:] += 1  # the input of scale 2 and on
    first, second = (eager.var(torch.tensor([0, 1]), m) for m in (given, changed))
    assert torch.equal(first[:, :5], second[:, :5])
    assert (first[:, 5:] != second[:, 5:]).any(dim=-1).all()


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_variants_have_their_keys(model: Model) -> None:
    keys = set(drawn_var(model).state_dict())
    assert ("shared_ada_lin.1.weight" in keys) == ("blocks.1.ada_gss" in keys) == model.shared_adaln
    assert ("blocks.1.ada_lin.1.bias" in keys) != model.shared_adaln
    assert ("blocks.0.attn.scale_mul_1H11" in keys) == model.qk_norm


def plain_attention(attn: SelfAttention, y: Tensor, factor: float) -> Tensor:
    """Attention without a norm, head by head: softmax of ``factor * q.k / sqrt(hd)``."""
    bias = torch.cat((attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias))
    q, k, v = (F.linear(y, attn.mat_qkv.weight, bias)).chunk(3, dim=-1)
    heads = []
    for one in range(attn.heads):
        part = slice(one * attn.head_dim, (one + 1) * attn.head_dim)
        scores = q[..., part] @ k[..., part].transpose(1, 2) * factor / math.sqrt(attn.head_dim)
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    return F.linear(torch.cat(heads, dim=-1), attn.proj.weight, attn.proj.bias)


def attention_of(model: Model) -> SelfAttention:
    attn = drawn_var(model).blocks[0].get_submodule("attn")
    assert isinstance(attn, SelfAttention)
    return attn


def test_without_the_l2_norm_scores_are_a_quarter() -> None:
    attn, y = attention_of(VARIANTS["no l2 norm"]), torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attn(y, None)[0], plain_attention(attn, y, 0.25))
    assert not torch.allclose(attn(y, None)[0], plain_attention(attn, y, 1.0), atol=1e-3)


def test_scale_mul_is_clamped_at_100() -> None:
    attn, y = attention_of(MODEL), torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    found = []
    for value in (math.log(100), 9.0, math.log(60)):
        attn.scale_mul_1H11.fill_(value)
        found.append(attn(y, None)[0])
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_folding_changes_nothing(model: Model) -> None:
    before = run(drawn_eager(full_plan(model)))
    eager = drawn_eager(full_plan(model))
    state = set(eager.var.state_dict())
    eager.var.fold()
    after = run(eager)
    assert torch.equal(logits(before), logits(after))
    assert set(eager.var.state_dict()) == state
    names = {name.rpartition(".")[2] for name, _ in eager.var.named_buffers()}
    assert {"qkv_bias", "start_pos", "lvl_pos_03"} <= names
    assert ("q_scale" in names) == model.qk_norm


def test_folded_tensors_stand_in_for_their_parameters() -> None:
    eager = drawn_eager(full_plan())
    before = run(eager)
    eager.var.fold()
    attn = eager.var.blocks[0].get_submodule("attn")
    for parameter in (eager.var.pos_1LC, eager.var.lvl_embed.weight, attn.get_parameter("scale_mul_1H11")):
        parameter.fill_(torch.nan)
    assert torch.equal(logits(before), logits(run(eager)))


def one_picture(eager: Eager, request: Request, picture: int) -> list[EagerStep]:
    """The run of one picture of a call by itself, with its own noise."""
    cond = eager.begin({name: given[picture : picture + 1] for name, given in eager.given(request).items()})
    state, steps = State(), []
    for step in eager.plan.steps:
        drawn = (None if t is None else t[picture : picture + 1] for t in eager.draw(step, request))
        with torch.inference_mode():
            steps.append(EagerStep(step, eager.run_step(step, cond, state, Draw(*drawn)), 0.0))  # type: ignore[arg-type]
    return steps


@pytest.mark.parametrize("smooth", [False, True])
def test_a_picture_does_not_depend_on_its_batch(smooth: bool) -> None:
    eager = drawn_eager(full_plan(smooth=smooth))
    request = Request([0, 3, MODEL.classes], seed=5, guidance_scale=3.0, top_p=0.9)
    batch = list(eager.stream(request))
    for picture in range(3):
        alone = one_picture(eager, request, picture)
        torch.testing.assert_close(logits(alone)[0], logits(batch)[picture], rtol=1e-3, atol=1e-3 if smooth else 1e-4)
        for a, b in zip(alone, batch, strict=True):
            assert torch.equal(a.prediction.tokens[0], b.prediction.tokens[picture])


def test_labels_guidance_and_seeds_move_the_pictures() -> None:
    eager = drawn_eager(full_plan())
    base = eager.generate(Request([1, 1]))[0]
    assert base.shape == (2, 10, 10, 3)
    assert np.array_equal(base, eager.generate(Request([1, 1]))[0])
    assert not np.array_equal(base[0], base[1])  # their noise differs
    for other in (Request([1, 2]), Request([1, 1], seed=1), Request([1, 1], guidance_scale=6.0)):
        assert not np.array_equal(base[1], eager.generate(other)[0][1])


def test_guidance_is_nothing_at_scale_0_and_grows() -> None:
    eager = drawn_eager(full_plan())
    free = run(eager, guidance_scale=0.0)
    strong = run(eager, guidance_scale=4.0, tokens=tokens(free))
    moved = [float((a.prediction.logits - b.prediction.logits).abs().mean()) for a, b in zip(free, strong, strict=True)]
    assert moved[0] == 0
    assert moved[1] > 0
    assert moved[3] > moved[1]


def test_guidance_does_nothing_for_the_null_class() -> None:
    """Both rows are then the same, and (1 + t) - t is 1."""
    eager = drawn_eager(full_plan())
    free = run(eager, subjects=[MODEL.classes], guidance_scale=0.0)
    strong = run(eager, subjects=[MODEL.classes], guidance_scale=4.0, tokens=tokens(free))
    torch.testing.assert_close(logits(free), logits(strong), rtol=1e-4, atol=1e-4)


def test_the_null_class_is_the_second_row() -> None:
    var = drawn_var()
    rows = var.begin({"labels": torch.tensor([0, 3])}, 2)
    null = var.begin({"labels": torch.tensor([MODEL.classes])}, 1)
    assert rows["sos"].shape == (4, 64)
    assert torch.equal(rows["sos"][:2], var.class_emb.weight[[0, 3]])
    assert list(rows) == list(null) == ["sos", "adaln.00", "adaln.01", "head"]
    for both, one in zip(rows.values(), null.values(), strict=True):
        torch.testing.assert_close(both[2:], one.expand_as(both[2:]))


@pytest.mark.parametrize("name", ["as published", "shared adaLN"])
def test_conditioning_is_a_linear_of_the_silu_of_the_class(name: str) -> None:
    var = drawn_var(VARIANTS[name])
    state: dict[str, Tensor] = dict(var.state_dict())
    rows = var.begin({"labels": torch.tensor([3])}, 1)
    silu = F.silu(state["class_emb.weight"][3])

    def lin(key: str) -> Tensor:
        return F.linear(silu, state[f"{key}.1.weight"], state[f"{key}.1.bias"]).reshape(1, -1, 64)

    for layer in range(MODEL.depth):
        if name == "shared adaLN":
            wanted = lin("shared_ada_lin") + state[f"blocks.{layer}.ada_gss"][0]
        else:
            wanted = lin(f"blocks.{layer}.ada_lin")
        torch.testing.assert_close(rows[f"adaln.{layer:02d}"], wanted)
    torch.testing.assert_close(rows["head"], lin("head_nm.ada_lin"))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("schedule", [SQUARE, OBLONG], ids=["square", "oblong"])
def test_a_recorded_run_replays(schedule: tuple[Grid, ...], smooth: bool) -> None:
    eager = drawn_eager(full_plan(schedule=schedule, smooth=smooth))
    recorded = run(eager)
    replayed = run(eager, tokens=tokens(recorded), seed=0 if smooth else 99)
    assert torch.equal(logits(recorded), logits(replayed))
    assert all(torch.equal(a, b) for a, b in zip(tokens(recorded).values(), tokens(replayed).values(), strict=True))
    assert eager.decode(recorded[-1].prediction.code_sum).shape == (2, *(2 * n for n in schedule[-1]), 3)


def test_more_smooth_draws_the_same_tokens_at_first_and_other_codes() -> None:
    plain, smooth = (run(drawn_eager(full_plan(smooth=smooth))) for smooth in (False, True))
    assert torch.equal(plain[0].prediction.tokens, smooth[0].prediction.tokens)
    assert not torch.allclose(plain[0].prediction.code_sum, smooth[0].prediction.code_sum, atol=1e-3)
    assert logits(smooth).isfinite().all()
    again = run(drawn_eager(full_plan(smooth=True)))
    assert torch.equal(logits(smooth), logits(again))


def test_more_smooth_mixes_codes_by_its_weights() -> None:
    """Step 0 by hand: phi of the bicubic map of softmax(...) @ codebook."""
    eager = drawn_eager(full_plan(smooth=True))
    request = Request([2], top_p=0.9)
    first = next(eager.stream(request)).prediction
    noise = eager.draw(eager.plan.steps[0], request)
    assert noise.smooth_noise is not None
    assert not torch.equal(noise.smooth_noise, noise.noise)
    kept = first.logits.topk(20).values
    below = first.logits < kept[..., -1:]
    ascending, order = first.logits.masked_fill(below, -torch.inf).sort(dim=-1)
    falls = torch.zeros_like(below).scatter(-1, order, ascending.softmax(-1).cumsum(-1) <= 1 - 0.9)
    left = first.logits.masked_fill(below | falls, -torch.inf)
    gumbel = -(-noise.smooth_noise.log()).log()
    codes = ((left + gumbel) / 0.27).softmax(-1) @ eager.vae.quantize.embedding.weight  # scale 0: r = 0
    h = F.interpolate(codes.transpose(1, 2).unflatten(2, (1, 1)), (5, 5), mode="bicubic")
    wanted = 0.5 * h + 0.5 * eager.vae.quantize.quant_resi.qresi_ls[0](h)
    torch.testing.assert_close(first.code_sum, wanted, rtol=1e-4, atol=1e-4)


def test_blocks_can_be_watched() -> None:
    eager, seen = drawn_eager(full_plan()), []
    for _ in eager.stream(Request([0, 1]), on_block=lambda step, layer, x: seen.append((step, layer, tuple(x.shape)))):
        pass
    assert seen == [(s, layer, (4, h * w, 64)) for s, (h, w) in enumerate(SQUARE) for layer in range(2)]


def test_level_positions_are_a_table_of_their_own_per_scale() -> None:
    var: VAR = drawn_var(schedule=OBLONG)
    position, level = var.pos_1LC[0], var.lvl_embed.weight
    assert torch.equal(var.level_position(0), position[:1] + level[0] + var.pos_start[0])
    assert torch.equal(var.level_position(2), position[3:9] + level[2])
    assert torch.equal(var.level_position(3), position[9:] + level[3])
