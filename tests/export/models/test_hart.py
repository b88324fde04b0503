"""The eager HART against the sheet's section 3 by hand, and against itself: batches, folding, pruning, tracing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.drawn_hart import MODEL, PRUNE, SCHEDULE, TEXT, VARIANTS, chain, drawn_hart, eager_of, subjects
from torch import Tensor
from torch.nn import functional as F

from nextscale.export.components import compute_in
from nextscale.export.eager import Eager, EagerStep, Request, State
from nextscale.export.models.diffusion import normals
from nextscale.export.models.hart import HART
from nextscale.export.models.step import Draw
from nextscale.plan.errors import PlanError
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.types import Layer, Model, SubLayer

WHOLE = Layer(0, (SubLayer("attn"), SubLayer("ffn")))
REQUEST = Request(subjects(6, 1, 4), seed=2, guidance_scale=3.0)


def run(eager: Eager, request: Request = REQUEST) -> list[EagerStep]:
    return list(eager.stream(request))


def logits(steps: list[EagerStep]) -> Tensor:
    """All steps in one, (B, L, V)."""
    return torch.cat([step.prediction.logits for step in steps], dim=1)


def tokens(steps: list[EagerStep]) -> dict[int, Tensor]:
    return {i: step.prediction.tokens for i, step in enumerate(steps)}


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


# Keys


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_keys_are_the_sheets(model: Model) -> None:
    assert model.text is not None
    linears = ["word_embed", "context_embed", "head_nm.ada_lin.1", "head"]
    linears += [f"blocks.{i}.attn.proj" for i in range(2)]
    linears += [f"lvl_embed.mlp.{i}" for i in (0, 2)] if model.level_mlp else []
    net, blocks = "diffloss.net", [f"diffloss.net.res_blocks.{k}" for k in range(2)]
    linears += [f"{net}.{name}" for name in ("time_embed.mlp.0", "time_embed.mlp.2", "cond_embed", "input_proj")]
    linears += [f"{block}.{name}" for block in blocks for name in ("in_ln", "mlp.0", "mlp.2", "adaLN_modulation.1")]
    linears += [f"{net}.final_layer.{name}" for name in ("linear", "adaLN_modulation.1")]
    wanted = {f"{name}.{kind}" for name in linears for kind in ("weight", "bias")}
    wanted |= {"decoder_norm.weight", "head_nm.ln_wo_grad.weight"}
    wanted |= {"context_norm.weight"} if model.text.norm else set()
    wanted |= set() if model.level_mlp else {"lvl_embed.weight"}
    parts = ["attn.q_bias", "attn.v_bias", "attn.qkv_proj.weight", "ln_wo_grad.weight"]
    parts += [f"ffn.{name}_proj.weight" for name in ("gate", "up", "down")]
    parts += ["attn.scale_mul_1H11"] if model.qk_norm else []
    wanted |= {f"blocks.{i}.{part}" for i in range(2) for part in parts}
    assert set(HART(model, SCHEDULE).state_dict()) == wanted


def test_models_of_other_kinds_are_refused() -> None:
    others = (
        replace(MODEL, text=None),
        replace(MODEL, text=replace(TEXT, use="cross")),
        replace(MODEL, diffusion=None),
        replace(MODEL, rope="grid"),
        replace(MODEL, heads=32, head_dim=2),
    )
    for model in others:
        with pytest.raises(PlanError, match="a HART has a text that is a prefix"):
            HART(model, SCHEDULE)


# What is computed once


@pytest.mark.parametrize("name", ["as inferred", "no context norm"])
def test_begin_is_the_sheets(name: str) -> None:
    hart, given = drawn_hart(VARIANTS[name]), eager_of(chain()).given(REQUEST)
    cond, state = hart.begin(given, 2), hart.state_dict()
    context = given["text"] if name == "no context norm" else rms(given["text"], state["context_norm.weight"])
    sos = F.linear(context, state["context_embed.weight"], state["context_embed.bias"])
    torch.testing.assert_close(cond["sos"][:3], sos)
    torch.testing.assert_close(cond["sos"][3:], state["context_embed.bias"].expand(3, 6, 64))
    assert cond["position"].tolist() == [5, 0, 3, 0, 0, 0]
    most = F.silu(cond["sos"].max(dim=1).values)
    head = F.linear(most, state["head_nm.ada_lin.1.weight"], state["head_nm.ada_lin.1.bias"])
    torch.testing.assert_close(cond["head"], head.reshape(6, 2, 64))
    assert set(cond) == {"sos", "position", "head"}
    assert torch.equal(hart.begin(given, 1)["sos"], cond["sos"][:3])


@pytest.mark.parametrize("name", ["as inferred", "level table"])
def test_levels_are_added_to_texts_and_maps(name: str) -> None:
    hart, plan = drawn_hart(VARIANTS[name]), chain(VARIANTS[name])
    sos, source = torch.randn(4, 6, 64), torch.randn(2, 9, 32)
    state = hart.state_dict()

    def level(scale: int) -> Tensor:
        if name == "level table":
            return state["lvl_embed.weight"][scale]
        angle = scale * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        wave = torch.cat((angle.cos(), angle.sin()))
        hidden = F.silu(F.linear(wave, state["lvl_embed.mlp.0.weight"], state["lvl_embed.mlp.0.bias"]))
        return F.linear(hidden, state["lvl_embed.mlp.2.weight"], state["lvl_embed.mlp.2.bias"])

    torch.testing.assert_close(hart.embed(plan.steps[0], sos, 2), sos + level(0))
    wanted = F.linear(source, state["word_embed.weight"], state["word_embed.bias"]) + level(2)
    torch.testing.assert_close(hart.embed(plan.steps[2], source, 2), torch.cat((wanted, wanted)))
    assert not torch.allclose(level(2), level(1), atol=1e-2)


# Blocks and head


def by_hand(hart: HART, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A block over all its tokens and no past: the sheet's section 3.3, head by head."""
    w = {name.removeprefix("blocks.0."): t for name, t in hart.state_dict().items() if name.startswith("blocks.0.")}
    heads, size = MODEL.heads, MODEL.head_dim

    def turned(t: Tensor) -> Tensor:
        first, second = t.chunk(2, dim=-1)
        return t * cos[:, :, 0] + torch.cat((-second, first), -1) * sin[:, :, 0]

    y = rms(x, w["ln_wo_grad.weight"])
    bias = torch.cat((w["attn.q_bias"], torch.zeros(64), w["attn.v_bias"]))
    q, k, v = F.linear(y, w["attn.qkv_proj.weight"], bias).chunk(3, dim=-1)
    outs = []
    for part in (slice(i * size, (i + 1) * size) for i in range(heads)):
        q_, k_ = q[..., part], k[..., part]
        if hart.model.qk_norm:
            q_, k_ = F.normalize(q_, dim=-1), F.normalize(k_, dim=-1)
            q_ = q_ * w["attn.scale_mul_1H11"][0, part.start // size].exp()
        scale = 1.0 if hart.model.qk_norm else 0.25 / math.sqrt(size)
        outs.append((turned(q_) @ turned(k_).transpose(1, 2) * scale).softmax(-1) @ v[..., part])
    x = x + F.linear(torch.cat(outs, -1), w["attn.proj.weight"], w["attn.proj.bias"])
    y = rms(x, w["ln_wo_grad.weight"])  # the same weight again
    gate = F.silu(F.linear(y, w["ffn.gate_proj.weight"]))
    return x + F.linear(gate * F.linear(y, w["ffn.up_proj.weight"]), w["ffn.down_proj.weight"])


@pytest.mark.parametrize("name", ["as inferred", "l2 norm"])
@pytest.mark.parametrize("order", [0, 2])
def test_blocks_are_the_sheets(name: str, order: int) -> None:
    hart, step = drawn_hart(VARIANTS[name]), chain(VARIANTS[name]).steps[order]
    x = torch.randn(2, step.tokens_in, 64, generator=torch.Generator().manual_seed(order))
    rotation = hart.rotation(step, {"position": torch.tensor([4.0, 0.0])})
    found = hart.layer(0)(x, {}, WHOLE, step.grid, hart.resize, rotation=rotation)
    torch.testing.assert_close(found.x, by_hand(hart, x, *rotation), rtol=1e-4, atol=1e-4)
    assert found.key.shape == found.value.shape == (step.tokens_in, 2, 4, 16)
    still = hart.layer(0)(x, {}, WHOLE, step.grid, hart.resize)
    assert not torch.allclose(found.x, still.x, atol=1e-2)


def test_the_head_has_a_norm_of_its_own() -> None:
    hart, state = drawn_hart(), drawn_hart().state_dict()
    x, head = torch.randn(2, 5, 64), torch.randn(2, 2, 64)
    y = rms(x, state["head_nm.ln_wo_grad.weight"]) * (1 + head[:, :1]) + head[:, 1:]
    torch.testing.assert_close(hart.logits(x, head), F.linear(y, state["head.weight"], state["head.bias"]))


def test_refinement_goes_from_the_drawn_codes_through_the_diffusion() -> None:
    hart, state = drawn_hart(), drawn_hart().state_dict()
    x, codes, noise = torch.randn(4, 9, 64), torch.randn(2, 9, 32), torch.rand(2, 9, 4, 32).clamp(1e-6, 1 - 1e-6)
    guidance = torch.tensor([[2.0, -1.0], [1.0, 0.0]])
    drawn = F.linear(codes, state["word_embed.weight"], state["word_embed.bias"])
    z = rms(x + torch.cat((drawn, drawn)), state["decoder_norm.weight"])
    torch.testing.assert_close(hart.denoised_by(x, codes, 2), z)
    found = hart.refine(x, codes, guidance, noise)
    assert torch.equal(found, hart.diffloss(hart.denoised_by(x, codes, 2), normals(noise), guidance))
    assert found.shape == codes.shape


# The chain


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("method", [None, PRUNE], ids=["plain", "pruned"])
def test_a_picture_does_not_depend_on_its_batch(method: FastVAR | None, smooth: bool) -> None:
    plan = chain(smooth=smooth)
    eager = eager_of(method(plan) if method else plan)
    batch = run(eager)
    for picture in range(len(REQUEST)):
        alone = one_picture(eager, REQUEST, picture)
        atol = 1e-3 if smooth else 1e-4
        torch.testing.assert_close(logits(alone)[0], logits(batch)[picture], rtol=1e-3, atol=atol)
        for a, b in zip(alone, batch, strict=True):
            assert torch.equal(a.prediction.tokens[0], b.prediction.tokens[picture])
        one, all_of_it = alone[-1].prediction.code_sum[0], batch[-1].prediction.code_sum[picture]
        torch.testing.assert_close(one, all_of_it, rtol=1e-3, atol=atol)


def one_picture(eager: Eager, request: Request, picture: int) -> list[EagerStep]:
    """The run of one picture of a call by itself, with its own noise."""
    given = {name: tensor[picture : picture + 1] for name, tensor in eager.given(request).items()}
    cond, state, steps = eager.begin(given), State(), []
    for step in eager.plan.steps:
        drawn = (None if t is None else t[picture : picture + 1] for t in eager.draw(step, request))
        with torch.inference_mode():
            steps.append(EagerStep(step, eager.run_step(step, cond, state, Draw(*drawn)), 0.0))  # type: ignore[arg-type]
    return steps


def test_texts_lengths_guidance_and_seeds_move_the_pictures() -> None:
    eager = eager_of(chain())
    forced = tokens(run(eager))
    base = logits(run(eager, replace(REQUEST, tokens=forced)))
    (first, length), *rest = REQUEST.subjects
    changed = first.copy()
    changed[5] += 1
    for other, moved in (
        (replace(REQUEST, subjects=[(changed, length), *rest]), [0]),
        (replace(REQUEST, subjects=[(first, 3), *rest]), [0]),  # the same features, other positions
        (replace(REQUEST, guidance_scale=5.0), [0, 1, 2]),
    ):
        found = logits(run(eager, replace(other, tokens=forced)))
        assert [i for i in range(3) if not torch.allclose(found[i], base[i], atol=1e-3)] == moved
    again, other_seed = run(eager), run(eager, replace(REQUEST, seed=3))
    assert torch.equal(again[-1].prediction.code_sum, run(eager)[-1].prediction.code_sum)
    assert not torch.equal(again[-1].prediction.tokens, other_seed[-1].prediction.tokens)


def test_features_behind_a_texts_length_are_attended() -> None:
    eager = eager_of(chain())
    forced = tokens(run(eager))
    base = logits(run(eager, replace(REQUEST, tokens=forced)))
    features, length = REQUEST.subjects[1]
    changed = features.copy()
    changed[length:] *= -1
    asked = [REQUEST.subjects[0], (changed, length), REQUEST.subjects[2]]
    found = logits(run(eager, replace(REQUEST, subjects=asked, tokens=forced)))
    assert not torch.allclose(found[1], base[1], atol=1e-2)
    torch.testing.assert_close(found[[0, 2]], base[[0, 2]])


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_folding_changes_nothing(model: Model) -> None:
    eager = eager_of(chain(model))
    before, keys = run(eager), set(eager.var.state_dict())
    eager.var.fold()
    idle = ["lvl_embed", "diffloss.net.time_embed"]
    for parameter in (p for name in idle for p in eager.var.get_submodule(name).parameters()):
        parameter.fill_(torch.nan)
    for layer in range(model.depth):
        for name in ("q_bias", "v_bias"):
            eager.var.layer(layer).get_parameter(f"attn.{name}").fill_(torch.nan)
    after = run(eager)
    assert torch.equal(logits(before), logits(after))
    assert torch.equal(before[-1].prediction.code_sum, after[-1].prediction.code_sum)
    assert set(eager.var.state_dict()) == keys


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_derived_tensors_have_rules_and_sources(model: Model) -> None:
    hart = drawn_hart(model).fold()
    for path, buffer in hart.named_buffers():
        owner, _, leaf = path.rpartition(".")
        rule = HART.DERIVED[leaf.rstrip("0123456789").rstrip("_")]
        assert buffer.isfinite().all()
        for source in rule.sources:
            hart.get_submodule(owner).get_parameter(source)
    names = {name for name, _ in hart.named_buffers() if "." not in name}
    levels = {f"{'level_mlp' if model.level_mlp else 'level'}_{scale:02d}" for scale in range(4)}
    assert names == levels | {"text_frequency", "grid_frequency"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_norms_and_streams(dtype: torch.dtype) -> None:
    plan = chain(VARIANTS["l2 norm"])
    full, half = eager_of(plan), eager_of(plan)
    forced = tokens(run(full))
    wanted = run(full, replace(REQUEST, tokens=forced))
    half.var.fold()
    compute_in(half.var, half.vae, dtype)
    assert isinstance(half.var, HART)
    kinds = {name: p.dtype for name, p in (*half.var.named_parameters(), *half.var.named_buffers())}
    cast = ("qkv_proj.weight", "qkv_bias", "attn.proj.weight", "down_proj.weight", "ada_lin.1.bias", "head.weight")
    cast += ("cond_embed.weight", "res_blocks.0.mlp.0.weight", "adaLN_modulation.1.weight")
    kept = ("norm.weight", "ln_wo_grad.weight", "in_ln.weight", "q_scale", "frequency", "word_embed.weight")
    kept += ("input_proj.weight", "final_layer.linear.weight", "time_embed_00", "level_mlp_00")
    for names, kind in ((cast, dtype), (kept, torch.float32)):
        assert {found for name, found in kinds.items() if name.endswith(names)} == {kind}
    got = run(half, replace(REQUEST, tokens=forced))
    assert logits(got).dtype == got[-1].prediction.code_sum.dtype == torch.float32
    error = float((logits(got) - logits(wanted)).abs().max() / logits(wanted).std())
    assert 0 < error < (0.3 if dtype == torch.bfloat16 else 0.05)


# FastVAR
