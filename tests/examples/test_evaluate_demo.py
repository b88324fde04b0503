"""The evaluation's arithmetic on verdicts that are made up, so that every figure is known beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

for needed in ("torch", "onnx", "onnxruntime", "matplotlib"):
    pytest.importorskip(needed)

import evaluate_demo  # noqa: E402

from nextscale.plan.recipes import RECIPES, plan_for  # noqa: E402

COUNT = 1600


def seen(wrong: int, milliseconds: float) -> evaluate_demo.Seen:
    """Verdicts of which the first ``wrong`` are false."""
    classes = np.arange(COUNT) % 16
    classes[:wrong] = (classes[:wrong] + 1) % 16
    features = np.random.default_rng(0).normal(size=(COUNT, 64))
    return evaluate_demo.Seen(classes, features, np.full(COUNT, 30.0), np.full(COUNT, milliseconds))


def test_losses_are_paired_and_bounded() -> None:
    plans = {"full": plan_for(RECIPES["demo"]), "fastvar": plan_for(RECIPES["demo-fastvar"])}
    real = np.random.default_rng(1).normal(size=(COUNT, 64))
    full, pruned = evaluate_demo.judged({"full": seen(16, 8.0), "fastvar": seen(32, 4.0)}, plans, real)
    assert full.accuracy == pytest.approx(0.99)
    assert full.accuracy_loss == full.accuracy_loss_upper_bound == 0.0
    assert full.psnr_to_full_median is None
    assert pruned.accuracy_loss == pytest.approx(0.01)
    assert 0.01 < pruned.accuracy_loss_upper_bound < 0.02
    assert pruned.speed_up == pytest.approx(2.0)
    assert pruned.flops_share < 1.0 == full.flops_share
    assert pruned.frechet == full.frechet
    low, high = pruned.accuracy_interval
    assert low < pruned.accuracy < high
    assert str(pruned).count("|") == evaluate_demo.HEADER.splitlines()[0].count("|")


@pytest.mark.parametrize("variant", evaluate_demo.VARIANTS)
def test_every_variant_is_a_plan_of_the_shipped_checkpoint(variant: str) -> None:
    folder = Path(__file__).parents[2] / "checkpoints" / "demo"
    if not (folder / "var.safetensors").exists():
        pytest.skip("the demo model is not trained yet")
    checkpoint = evaluate_demo.load_checkpoint(folder / "var.safetensors", folder / "vae.safetensors")
    plan = evaluate_demo.plan_of(variant, checkpoint)
    assert bool(plan.methods) == (variant != "full")
    assert plan.schedule == checkpoint.schedule
