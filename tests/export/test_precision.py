"""Half precision in eager PyTorch: what computes in it, what stays float32, and how far logits move."""

from __future__ import annotations

import pytest
import torch
from support.drawn import MODEL, SQUARE, drawn_eager, drawn_vae, drawn_var, full_plan

from nextscale.export.components import compute_in
from nextscale.export.eager import Eager, EagerStep, Request
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.types import Model, Plan

# Of the logits' standard deviation, in the mean: the rounding of the weights and of two blocks.
NEAR = {torch.float16: 0.002, torch.bfloat16: 0.016}
VARIANTS = {"separate": MODEL, "shared": Model(**{**vars(MODEL), "shared_adaln": True})}


def in_half(plan: Plan, dtype: torch.dtype) -> Eager:
    eager = drawn_eager(plan)
    compute_in(eager.var, eager.vae, dtype)
    return eager


def run(eager: Eager, steps: list[EagerStep] | None = None) -> list[EagerStep]:
    tokens = {i: step.prediction.tokens for i, step in enumerate(steps or [])}
    return list(eager.stream(Request([1, 5], guidance_scale=2.0, tokens=tokens)))


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("dtype", NEAR, ids=str)
def test_logits_stay_near_float32_s(dtype: torch.dtype, model: Model) -> None:
    plan = full_plan(model)
    exact = run(drawn_eager(plan))
    for wanted, got in zip(exact, run(in_half(plan, dtype), exact), strict=True):
        error = (got.prediction.logits - wanted.prediction.logits).abs().mean() / wanted.prediction.logits.std()
        assert 0 < float(error) < NEAR[dtype]
        torch.testing.assert_close(got.prediction.code_sum, wanted.prediction.code_sum, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", NEAR, ids=str)
def test_a_pruned_chain_runs_in_half(dtype: torch.dtype) -> None:
    plan = FastVAR({-1: 0.5}, cache_scale=-2)(full_plan())
    for step in run(in_half(plan, dtype)):
        assert step.prediction.logits.dtype == torch.float32
        assert step.prediction.logits.isfinite().all()


def test_what_must_not_round_stays_float32() -> None:
    var, vae = drawn_var(VARIANTS["shared"], SQUARE), drawn_vae(encoder=True)
    compute_in(var.fold(), vae, torch.float16)
    dtypes = {**{f"var/{k}": t.dtype for k, t in var.named_parameters()}, **dict(vae_dtypes(vae))}
    dtypes |= {f"var/{k}": t.dtype for k, t in var.named_buffers()}
    exact = {k for k, dtype in dtypes.items() if dtype == torch.float32}
    for key in ("var/class_emb.weight", "var/lvl_pos_03", "var/blocks.0.attn.q_scale", "vae/decoder.norm_out.weight"):
        assert key in exact
    for key in ("vae/quantize.embedding.weight", "vae/quantize.quant_resi.qresi_ls.3.weight"):
        assert key in exact
    for key in ("var/blocks.1.attn.mat_qkv.weight", "var/blocks.1.attn.qkv_bias", "var/head.weight"):
        assert dtypes[key] == torch.float16
    assert dtypes["vae/decoder.up.0.block.0.conv1.weight"] == torch.float16


def vae_dtypes(vae: torch.nn.Module) -> list[tuple[str, torch.dtype]]:
    return [(f"vae/{key}", parameter.dtype) for key, parameter in vae.named_parameters()]


def test_norms_of_the_decoder_do_not_overflow() -> None:
    """The squares of such activations do not fit into float16."""
    var, vae = drawn_var(), drawn_vae()
    vae.decoder.conv_in.weight *= 1000
    compute_in(var, vae, torch.float16)
    pixels = vae.decode(torch.randn(1, 32, 6, 4, generator=torch.Generator().manual_seed(5)))
    assert pixels.dtype == torch.float32
    assert pixels.isfinite().all()
    assert 0.05 < float(pixels.std()) < 0.5
