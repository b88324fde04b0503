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
from nextscale.plan.recipes import RECIPES, VAR_TOKENIZER, full_plan, plan_for, recipe, var_model
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Sampling
from nextscale.plan.validate import find_problems


def test_the_shipped_recipes() -> None:
    bases = ["var-d16", "var-d20", "var-d24", "var-d30", "var-d36", "demo"]
    bases += ["infinity-125m-0.25m", "infinity-125m-1m", "infinity-2b-0.06m", "infinity-2b-0.25m", "infinity-2b-0.60m"]
    bases += ["infinity-2b-1m", "infinity-2b-2k", "infinity-8b-0.25m", "infinity-8b-1m", "hart-1024"]
    pruned = {f"{base}-fastvar" for base in bases if base != "infinity-2b-0.06m"}  # it ends before any pruned scale
    thirteen = {f"infinity-{size}-1m-fastvar13" for size in ("125m", "2b", "8b")}
    assert set(RECIPES) == {*bases, *pruned, *thirteen}
    assert len(RECIPES) == len(bases) + len(pruned) + len(thirteen)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_a_consistent_plan(name: str) -> None:
    plan = plan_for(recipe(name))
    assert find_problems(plan) == []
    assert from_json(json.loads(json.dumps(to_json(plan)))) == plan
    assert plan.name == name
    assert bool(plan.methods) == ("-fastvar" in name)
    assert bool(plan.caches) == ("-fastvar" in name)


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


KEPT = {  # scale: tokens that stay, by recipe
    "infinity-125m-0.25m-fastvar": {9: 615},
    "infinity-2b-0.25m-fastvar": {9: 615},
    "infinity-2b-0.60m-fastvar": {9: 615, 10: 800},
    "infinity-2b-1m-fastvar": {9: 615, 10: 800},
    "infinity-8b-1m-fastvar": {9: 615, 10: 800},
    "infinity-2b-1m-fastvar13": {9: 615, 10: 800, 11: 807, 12: 1024},
    "infinity-2b-2k-fastvar": {9: 615, 10: 800, 13: 1059},
    "hart-1024-fastvar": {12: 1152, 13: 1024},
}
RUN = {"infinity-2b-0.60m-fastvar": 11, "infinity-2b-1m-fastvar": 11, "infinity-8b-1m-fastvar": 11}
RUN["infinity-2b-2k-fastvar"] = 12
LAYERS = {"125m": range(3, 12), "2b": range(3, 28), "8b": range(3, 36), "1024": range(24)}


@pytest.mark.parametrize("name", KEPT)
def test_fastvar_as_the_fact_sheet_has_it(name: str) -> None:
    """Kept tokens of every sub-layer, the layers that prune, the scale of the caches, the scales that are skipped."""
    plan = plan_for(recipe(name))
    layers = next(found for size, found in LAYERS.items() if size in name)
    for step in plan.steps:
        for layer in step.layers:
            kept = KEPT[name].get(step.scale) if layer.index in layers else None
            assert {sub.kept for sub in layer.sub_layers} == {kept}
    side = 36 if name.startswith("hart") else 24
    assert {cache.grid for cache in plan.caches} == {(side, side)}
    assert len(plan.caches) == len(layers) * len(plan.model().sub_layers)
    assert len(plan.steps) == RUN.get(name, len(plan.schedule))
    assert plan.final_grid == plan.schedule[-1]


def test_infinitys_eleven_passes_compute_2912_tokens_of_10521() -> None:
    full, pruned = plan_for(recipe("infinity-2b-1m")), plan_for(recipe("infinity-2b-1m-fastvar"))
    assert sum(step.tokens_in for step in full.steps) == 10521
    computed = {
        index: sum(step.layers[index].sub_layers[0].kept or step.tokens_in for step in pruned.steps)
        for index in (2, 3, 27, 28)
    }
    assert computed == {2: 4121, 3: 2912, 27: 2912, 28: 4121}


def test_what_is_our_choice_says_so() -> None:
    ours = [name for name in RECIPES if "fastvar13" in name or ("8b" in name and "fastvar" in name) or "2k" in name]
    assert len(ours) == 7
    for name in ours:
        assert "quality not validated" in RECIPES[name].description


@pytest.mark.parametrize("name", [name for name in RECIPES if "-fastvar" in name])
def test_a_pruned_plan_in_full_is_its_plain_recipe(name: str) -> None:
    plain = plan_for(recipe(name.partition("-fastvar")[0]))
    assert full_plan(plan_for(recipe(name))) == replace(plain, name=name)


def test_what_has_no_full_form_is_refused() -> None:
    plan = plan_for(recipe("demo"))
    for broken in (
        replace(plan, models=(*plan.models, ("draft", plan.model()))),
        replace(plan, steps=(replace(plan.steps[0], sampling=None), *plan.steps[1:])),
    ):
        with pytest.raises(PlanError, match="plan 'demo' is not of one model that samples at every step"):
            full_plan(broken)


def test_a_shorter_text_is_another_models_number() -> None:
    entry = recipe("infinity-2b-1m")
    assert entry.model.text is not None
    plan = plan_for(entry, model=replace(entry.model, text=replace(entry.model.text, tokens=64)))
    assert plan.model().text == replace(entry.model.text, tokens=64)
    assert plan.model().rope_grid == (64, 64)


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
