"""``nextscale recipes``: the deployments that have a name."""

from __future__ import annotations

from nextscale.cli.options import Json


def recipes(json: Json = False) -> None:
    """List the recipes: named, versioned choices of model, schedule and methods.

    \b
    nextscale recipes
    nextscale plan var-d16-fastvar

    A fine-tune uses the recipe of its model: its own numbers (classes, depth,
    schedule) are read from its checkpoint.
    """
    from nextscale.cli.output import print_json, print_table
    from nextscale.plan.recipes import RECIPES, plan_for

    plans = [(recipe, plan_for(recipe)) for recipe in RECIPES.values()]
    if json:
        rows = [
            {
                "name": recipe.name,
                "version": recipe.version,
                "description": recipe.description,
                "family": recipe.model.family,
                "depth": recipe.model.depth,
                "width": recipe.model.width,
                "classes": recipe.model.classes,
                "text_tokens": recipe.model.text.tokens if recipe.model.text else 0,
                "image_size": list(plan.image_size),
                "schedule": [list(grid) for grid in plan.schedule],
                "methods": list(plan.methods),
                "top_k": recipe.sampling.top_k,
                "defaults": dict(recipe.defaults),
            }
            for recipe, plan in plans
        ]
        print_json(rows)
        return
    print_table(
        ("recipe", "version", "layers", "width", "pixels", "steps", "what it is"),
        [
            (
                recipe.name,
                str(recipe.version),
                str(recipe.model.depth),
                str(recipe.model.width),
                "×".join(str(side) for side in plan.image_size),
                str(len(plan.steps)),
                recipe.description,
            )
            for recipe, plan in plans
        ],
        numeric=(False, True, True, True, True, True, False),
    )
