"""Costs against published parameter counts, the fact sheets' figures, PyTorch's own counter and hand arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny import PRUNED
from torch.utils.flop_counter import FlopCounterMode

from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.cost import memory, plan_cost, resize_flops
from nextscale.plan.devices import DEVICES, cpu, device
from nextscale.plan.errors import InputError, PlanError
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import RECIPES, plan_for, recipe, var_model
from nextscale.plan.sizes import decoder_parts, model_parameters, sub_layer_parameters, tokenizer_parameters


@pytest.mark.parametrize(
    ("depth", "published"),
    [(16, 310_283_520), (20, 600_917_136), (24, 1_033_399_360), (30, 2_010_020_356), (36, 2_353_893_904)],
)
def test_parameters_of_the_published_models(depth: int, published: int) -> None:
    entry = recipe(f"var-d{depth}")
    assert model_parameters(entry.model, entry.schedule) == published


@pytest.mark.parametrize("name", ["var-d16", "demo"])
def test_decoder_parameters_and_flops_are_those_of_the_module(name: str) -> None:
    entry = recipe(name)
    with torch.device("meta"):
        vae = VQVAE(entry.tokenizer, len(entry.schedule), 2, encoder=False)
        code_sum = torch.empty(1, entry.tokenizer.code_channels, *entry.schedule[-1])
    assert sum(p.numel() for p in vae.parameters()) == tokenizer_parameters(entry.tokenizer, entry.schedule[-1])
    with FlopCounterMode(display=False) as counter:
        vae.decode(code_sum)
    assert sum(part.flops for part in decoder_parts(entry.tokenizer, entry.schedule[-1])) == counter.get_total_flops()


@pytest.mark.parametrize(("kept", "saved"), [(0.5, 1.48), (0.4, 1.63), (0.25, 1.91)])
def test_flops_saved_by_pruning_both_last_scales(kept: float, saved: float) -> None:
    """The backends sheet's figures for VAR-d16, all layers, without begin and decode."""
    full = plan_for(recipe("var-d16"))
    pruned = FastVAR({-2: 1 - kept, -1: 1 - kept}, cache_scale=-3)(full)
    before, after = (sum(step.total_flops for step in plan_cost(plan).steps) for plan in (full, pruned))
    assert before / after == pytest.approx(saved, rel=0.01)


def test_one_step_by_hand() -> None:
    """d16, step 2: 9 tokens after 5, 2 rows; 16 blocks of 24 C^2 n and 4 C n (past + n)."""
    step = plan_cost(plan_for(recipe("var-d16")), precision="fp32").steps[2]
    c, rows, n, past = 1024, 2, 9, 5
    assert step.flops["linear"] == 16 * rows * n * 24 * c * c + 2 * n * 32 * c
    assert step.flops["attention"] == 16 * rows * 4 * n * (past + n) * c
    assert step.flops["head"] == rows * n * 2 * c * 4096
    assert step.flops["restore"] == 0
    assert step.moved["tapes"] == 16 * rows * (past + n) * 2 * c * 4
    assert step.name == "step_02"


def test_pruning_moves_restore_caches_and_less_of_everything_else() -> None:
    plain = plan_for(recipe("var-d16"))
    full, pruned = (plan_cost(plan) for plan in (plain, PRUNED(plain)))
    assert full.steps[:7] == pruned.steps[:7]
    last, last_pruned = full.steps[9], pruned.steps[9]
    assert last.moved["restore caches"] == 0
    assert last_pruned.moved["restore caches"] == 15 * 2 * 2 * 100 * 1024 * 2  # layers, sub-layers, rows, tokens
    assert last_pruned.flops["restore"] == 15 * 2 * 2 * 1024 * resize_flops((10, 10), (16, 16))
    for kind in ("linear", "attention"):
        assert last_pruned.flops[kind] < last.flops[kind]
    assert last_pruned.moved["weights"] == last.moved["weights"]


@given(images=st.integers(1, 9))
def test_work_grows_with_pictures_and_weights_are_read_once(images: int) -> None:
    plan = plan_for(recipe("demo-fastvar"))
    one, many = plan_cost(plan), plan_cost(plan, images)
    assert many.total_flops == pytest.approx(images * one.total_flops)
    assert [step.moved["weights"] for step in many.steps] == [step.moved["weights"] for step in one.steps]


def test_memory_by_cause() -> None:
    report = memory(PRUNED(plan_for(recipe("var-d36"))), images=2, precision="bf16")
    rows, c = 4, 2304
    past = 1216 + 35 * (640 + 346)  # layer 0 is full; the others keep 576 - int(0.4 * 576) of step 8
    assert report["tapes"] == past * rows * c * 2 * 2
    assert report["restore caches"] == 35 * 2 * rows * 18 * 18 * c * 2
    assert report["weights"] == 2 * (2_353_893_904 + 64_831_235)
    parts = sum(size for cause, size in report.items() if cause != "total")
    assert report["total"] <= parts
    buffers = {"conditioning", "state", "tapes", "restore caches", "inputs and outputs"}
    assert set(report) == {"weights", "scratch (estimate)", "total"} | buffers


@pytest.mark.parametrize("name", RECIPES)
def test_roofline_times_fall_with_faster_devices(name: str) -> None:
    cost = plan_cost(plan_for(recipe(name)), precision="fp16")
    times = {known: cost.seconds(entry) for known, entry in DEVICES.items()}
    assert times["RTX 3090"] > times["RTX 4090"] > times["RTX 5090"]
    assert times["A100"] > times["H100"] > times["H200"] > 0


def test_a_roofline_is_the_longer_of_work_and_traffic() -> None:
    slow = cpu(gflops=100, bandwidth=10)
    assert slow.seconds(100e9, 1e9, "fp32") == 1.0
    assert slow.seconds(1e9, 100e9, "fp16") == 10.0


def test_refusals() -> None:
    plan = plan_for(recipe("demo"))
    assert device("rtx-3090") is DEVICES["RTX 3090"]
    with pytest.raises(InputError, match="device 'TPU' is unknown; known are RTX 3090, RTX 4090, RTX 5090, A100"):
        device("TPU")
    with pytest.raises(InputError, match="A100 has no rate for 'int8'; it has fp16, bf16, fp32"):
        device("A100").seconds(1, 1, "int8")
    with pytest.raises(InputError, match="0 pictures asked for"):
        plan_cost(plan, images=0)
    with pytest.raises(InputError, match="precision 'fp8' is unknown"):
        plan_cost(plan, precision="fp8")
    with pytest.raises(InputError, match="must be above 0"):
        cpu(0, 1)
    with pytest.raises(PlanError, match="sub-layer 'conv' is not known; known are attn, ca, ffn, sa"):
        sub_layer_parameters(var_model(2), "conv")


def test_int8_weights_of_blocks_are_a_byte_each() -> None:
    plan = plan_for(recipe("var-d16"))
    exact, whole = (memory(plan, precision=precision) for precision in ("fp32", "int8"))
    blocks = 16 * (4 + 8 + 6) * 1024 * 1024  # attention, feed-forward, adaLN
    assert exact["weights"] - whole["weights"] == 3 * blocks
    assert {cause: size for cause, size in exact.items() if cause not in ("weights", "total")} == {
        cause: size for cause, size in whole.items() if cause not in ("weights", "total")
    }
    steps = [plan_cost(plan, precision=precision).steps[-1].moved for precision in ("fp32", "int8")]
    assert 0.2 < steps[1]["weights"] / steps[0]["weights"] < 0.4
    begins = [plan_cost(plan, precision=precision).begin.moved["weights"] for precision in ("fp32", "int8")]
    assert begins[0] - begins[1] == 3 * 16 * 6 * 1024 * 1024, "adaLN is read here"
    assert steps[1]["tapes"] == steps[0]["tapes"]
