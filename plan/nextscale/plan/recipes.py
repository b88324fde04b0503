"""Recipes: named, versioned choices of model, schedule and methods with their parameters.

A recipe's methods are said so that they fit other numbers too (scales and layers from the end), and :func:`plan_for`
applies them to the numbers of a fine-tune: other classes, depth or schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.errors import InputError
from nextscale.plan.methods import FastVAR
from nextscale.plan.schedules import schedule, squares
from nextscale.plan.types import Grid, Model, Plan, Sampling, Tokenizer
from nextscale.plan.validate import validate

Method = Callable[[Plan], Plan]


@dataclass(frozen=True)
class Recipe:
    """What a deployment is made from. ``version`` rises whenever the plan that comes out changes.

    ``defaults`` are the run-time inputs where a caller names none.
    """

    name: str
    version: int
    description: str
    model: Model
    tokenizer: Tokenizer
    schedule: tuple[Grid, ...]
    sampling: Sampling
    defaults: tuple[tuple[str, float], ...]
    methods: tuple[Method, ...] = ()


def plan_for(
    recipe: Recipe,
    model: Model | None = None,
    tokenizer: Tokenizer | None = None,
    schedule: tuple[Grid, ...] | None = None,
    sampling: Sampling | None = None,
) -> Plan:
    """The recipe's plan, with the numbers of another checkpoint where they are given.

    Raises :class:`PlanError` where the recipe's methods or sampling do not fit them.
    """
    plan = next_scale_plan(
        recipe.name,
        model or recipe.model,
        tokenizer or recipe.tokenizer,
        schedule or recipe.schedule,
        sampling or recipe.sampling,
        defaults=recipe.defaults,
    )
    for method in recipe.methods:
        plan = method(plan)
    return validate(plan)


def recipe(name: str) -> Recipe:
    """The recipe of that name; raises :class:`InputError` with the known names."""
    if name not in RECIPES:
        raise InputError(f"recipe {name!r} is unknown; known are {', '.join(RECIPES)}")
    return RECIPES[name]


def var_model(
    depth: int,
    width: int | None = None,
    heads: int | None = None,
    classes: int = 1000,
    vocabulary: int = 4096,
    code_channels: int = 32,
    ffn_ratio: float = 4.0,
    shared_adaln: bool = False,
    qk_norm: bool = True,
) -> Model:
    """A VAR's numbers by its builder's rule (fact sheet 1.1), width ``64 * depth`` and ``depth`` heads unless given."""
    width, heads = width or 64 * depth, heads or depth
    if width % heads:
        raise InputError(f"a width of {width} cannot be shared by {heads} heads: it must be a multiple of their number")
    return Model(
        family="var",
        depth=depth,
        width=width,
        heads=heads,
        head_dim=width // heads,
        ffn_width=round(ffn_ratio * width),
        vocabulary=vocabulary,
        code_channels=code_channels,
        classes=classes,
        qk_norm=qk_norm,
        shared_adaln=shared_adaln,
    )


# The tokenizer of `vae_ch160v4096z32.pth` (fact sheet 1.3).
VAR_TOKENIZER = Tokenizer(160, (1, 1, 2, 2, 4), res_blocks=3, code_channels=32, vocabulary=4096, stride=16)

# Upstream's demonstration settings (fact sheet 1.5); its figures for FID use guidance 1.5 and top-p 0.96.
VAR_SAMPLING = Sampling(top_k=900)
VAR_DEFAULTS = (("guidance_scale", 4.0), ("top_p", 0.95), ("temperature", 1.0))

# Upstream publishes none for class-conditional VAR. Of what was tried on the demo model (docs/recipes.md), the most
# pruning that costs it under one point of class accuracy.
VAR_FASTVAR = FastVAR({-1: 0.5}, cache_scale=-2)
PRUNED = "with FastVAR at the last scale; quality not validated on ImageNet"


def _published(depth: int, resolution: int) -> Recipe:
    return Recipe(
        name=f"var-d{depth}",
        version=1,
        description=f"VAR of depth {depth} at {resolution} px, as published",
        model=var_model(depth, shared_adaln=depth == 36),
        tokenizer=VAR_TOKENIZER,
        schedule=schedule(f"var-{resolution}"),
        sampling=VAR_SAMPLING,
        defaults=VAR_DEFAULTS,
    )


# The numbers that examples/train_demo.py trains; a checkpoint's own take their place.
_DEMO = Recipe(
    name="demo",
    version=1,
    description="The small model of letters, digits and shapes at 64 px that comes with the repository",
    model=var_model(7, 192, 3, classes=16, vocabulary=512, code_channels=16, shared_adaln=True),
    tokenizer=Tokenizer(32, (1, 1, 2), res_blocks=1, code_channels=16, vocabulary=512, stride=4, norm_groups=8),
    schedule=squares(1, 2, 3, 4, 6, 8, 12, 16),
    sampling=Sampling(top_k=0),
    defaults=(("guidance_scale", 4.0), ("top_p", 0.6), ("temperature", 0.8)),
)


def _pruned(full: Recipe, method: Method, description: str) -> Recipe:
    return replace(
        full, name=f"{full.name}-fastvar", description=f"{full.description}, {description}", methods=(method,)
    )


_FULL = [_published(depth, 512 if depth == 36 else 256) for depth in (16, 20, 24, 30, 36)]

RECIPES: dict[str, Recipe] = {
    entry.name: entry
    for full, description in [*((full, PRUNED) for full in _FULL), (_DEMO, "with FastVAR at the last scale")]
    for entry in (full, _pruned(full, VAR_FASTVAR, description))
}
