"""Recipes: what is shipped, that it is consistent, and that it takes another checkpoint's numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from support.tiny import PRUNED

from nextscale.plan.codec import from_json, to_json
from nextscale.plan.errors import InputError, PlanError
from nextscale.plan.recipes import RECIPES, VAR_TOKENIZER, plan_for, recipe, var_model
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Sampling
from nextscale.plan.validate import find_problems


def test_the_shipped_recipes() -> None:
    bases = ("var-d16", "var-d20", "var-d24", "var-d30", "var-d36", "demo")
    assert list(RECIPES) == [name for base in bases for name in (base, f"{base}-fastvar")]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_a_consistent_plan(name: str) -> None:
    plan = plan_for(recipe(name))
    assert find_problems(plan) == []
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan
    assert plan.name == name
    assert bool(plan.methods) == name.endswith("-fastvar")
    assert bool(plan.caches) == name.endswith("-fastvar")


@pytest.mark.parametrize(("depth", "pixels"), [(16, 256), (20, 256), (24, 256), (30, 256), (36, 512)])
def test_published_sizes(depth: int, pixels: int) -> None:
    plan = plan_for(recipe(f"var-d{depth}"))
    model = plan.model()
    assert (model.width, model.heads, model.head_dim, model.ffn_width) == (64 * depth, depth, 64, 256 * depth)
    assert plan.image_size == (pixels, pixels)
    assert model.shared_adaln == (depth == 36)


def test_pruned_recipes_of_published_models_say_that_their_quality_is_not_validated() -> None:
    for name, entry in RECIPES.items():
        if name.startswith("var-") and entry.methods:
            assert "quality not validated on ImageNet" in entry.description


def test_a_fine_tune_takes_the_methods_with_its_own_numbers() -> None:
    grids = (*schedule("var-256"), (20, 24))
    model = var_model(12, 384, 6, classes=7)
    plan = plan_for(recipe("var-d16-fastvar"), model=model, schedule=grids)
    assert plan.model() == model
    assert plan.image_size == (320, 384)
    assert [step.layers[5].sub_layers[0].kept for step in plan.steps[9:]] == [None, 240]  # of 480
    assert {cache.grid for cache in plan.caches} == {(16, 16)}
    assert plan.defaults == recipe("var-d16").defaults


def test_sampling_that_does_not_fit_is_refused() -> None:
    demo = recipe("demo")
    with pytest.raises(PlanError, match="step 0: top_k is 900, of a vocabulary of 512; 0 keeps all"):
        plan_for(demo, sampling=Sampling(900))
    with pytest.raises(PlanError, match="model 'var' predicts 512 codes of 16 channels, the tokenizer has 4096 of 32"):
        plan_for(demo, tokenizer=VAR_TOKENIZER)
    with pytest.raises(InputError, match="width of 100 cannot be shared by 3 heads"):
        var_model(2, 100, 3)


def test_a_method_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match="scale -3 is asked for; the plan has 2"):
        plan_for(replace(recipe("demo"), methods=(PRUNED,)), schedule=((1, 1), (4, 4)))


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="recipe 'var-d17' is unknown; known are var-d16, var-d16-fastvar, "):
        recipe("var-d17")


def test_plans_need_no_torch() -> None:
    code = (
        "import sys; from nextscale.plan.recipes import plan_for, recipe; plan_for(recipe('var-d36-fastvar')); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnx', 'onnxruntime', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
