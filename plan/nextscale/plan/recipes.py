"""Recipes: named, versioned choices of model, schedule and methods with their parameters.

What is published of each family stands in ``families/``; here are the choices, and which of them are ours. A recipe's
methods are said by scale and layer, and :func:`plan_for` applies them to the numbers of a fine-tune, or to pictures of
another aspect ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.errors import InputError, PlanError
from nextscale.plan.families.hart import (
    HART_DEFAULTS,
    HART_SAMPLING,
    HART_TOKENIZER,
    hart_model,
    hart_plan,
    hart_resized,
)
from nextscale.plan.families.infinity import (
    INFINITY_8B_DEFAULTS,
    INFINITY_DEFAULTS,
    INFINITY_PATCH_TOKENIZER,
    INFINITY_SAMPLING,
    INFINITY_SIZES,
    INFINITY_TOKENIZER,
    infinity_model,
    infinity_plan,
    infinity_resized,
)
from nextscale.plan.families.var import VAR_DEFAULTS, VAR_SAMPLING, VAR_TOKENIZER, var_model, var_resized
from nextscale.plan.methods import FastVAR
from nextscale.plan.schedules import schedule, squares
from nextscale.plan.types import Grid, Model, Plan, Sampling, Tokenizer
from nextscale.plan.validate import validate

__all__ = [
    "RECIPES",
    "VAR_DEFAULTS",
    "VAR_SAMPLING",
    "VAR_TOKENIZER",
    "Chain",
    "Method",
    "Recipe",
    "full_plan",
    "plan_for",
    "recipe",
    "var_model",
]

Method = Callable[[Plan], Plan]
# A family's model of another depth, width or number of heads; None follows from the others.
Resized = Callable[[Model, int | None, int | None, int | None], Model]


class Chain(Protocol):
    """A family's plain chain: what runs before any method has changed it."""

    def __call__(
        self,
        name: str,
        model: Model,
        tokenizer: Tokenizer,
        schedule: tuple[Grid, ...],
        sampling: Sampling,
        *,
        defaults: tuple[tuple[str, float], ...] = (),
    ) -> Plan:
        """The plan in full; raises :class:`PlanError` for numbers that cannot be run."""


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
    chain: Chain = next_scale_plan
    resized: Resized = var_resized


def plan_for(
    recipe: Recipe,
    model: Model | None = None,
    tokenizer: Tokenizer | None = None,
    schedule: tuple[Grid, ...] | None = None,
    sampling: Sampling | None = None,
) -> Plan:
    """The recipe's plan, with the numbers of another checkpoint where they are given.

    Raises :class:`InputError` for a checkpoint of another family, :class:`PlanError` where the recipe's methods or
    sampling do not fit its numbers.
    """
    if model is not None and model.family != recipe.model.family:
        own = next(r.name for r in RECIPES.values() if r.model.family == model.family)
        raise InputError(
            f"recipe {recipe.name!r} is for {recipe.model.family}, and the checkpoint is of {model.family}: "
            f"take a recipe of its own, such as {own}"
        )
    plan = recipe.chain(
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


def full_plan(plan: Plan) -> Plan:
    """The plan of the same model in full: every scale, layer and token, by the chain of its family, as it samples now.

    Raises :class:`PlanError` for a plan of several models, or one that does not sample at its first step.
    """
    first = plan.steps[0]
    if len(plan.models) != 1 or first.sampling is None:
        raise PlanError(f"plan {plan.name!r} is not of one model that samples at every step: it has no full form")
    model = plan.model(first.weight_set)
    chain = next((each.chain for each in RECIPES.values() if each.model.family == model.family), next_scale_plan)
    full = chain(plan.name, model, plan.tokenizer, plan.schedule, first.sampling, defaults=plan.defaults)
    steps = tuple(replace(step, guidance_rows=len(plan.guidance.rows)) for step in full.steps)
    return validate(replace(full, guidance=plan.guidance, steps=steps))


def recipe(name: str) -> Recipe:
    """The recipe of that name; raises :class:`InputError` with the known names."""
    if name not in RECIPES:
        raise InputError(f"recipe {name!r} is unknown; known are {', '.join(RECIPES)}")
    return RECIPES[name]


def _pruned(full: Recipe, method: Method, description: str, suffix: str = "fastvar") -> Recipe:
    return replace(
        full, name=f"{full.name}-{suffix}", description=f"{full.description}, {description}", methods=(method,)
    )


# VAR. Upstream publishes no pruning for it. Of what was tried on the demo model (docs/recipes.md), this is the most
# that costs it under one point of class accuracy.
_VAR_FASTVAR = FastVAR({-1: 0.5}, cache_scale=-2)


def _var(depth: int, resolution: int) -> Recipe:
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


def _all_var() -> list[Recipe]:
    full = [_var(depth, 512 if depth == 36 else 256) for depth in (16, 20, 24, 30, 36)]
    said = "with FastVAR at the last scale; quality not validated on ImageNet"
    return [each for one in full for each in (one, _pruned(one, _VAR_FASTVAR, said))]


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


# Infinity. Upstream's FastVAR (fact sheet 4.2) restores from scale 8 and leaves the first three and the last four of
# the 2B's 32 layers alone. Its code compares widths, here scales are told by their index: 9 is 32x32, 10 is 40x40.
_CACHE_SCALE, _RATIOS = 8, {9: 0.4, 10: 0.5}
_LAYERS = {"125m": (3, 11), "2b": (3, 27), "8b": (3, 35)}  # of 12: what the same code would prune; of 40: our choice
_AS_RELEASED = {
    "0.25m": ({9: 0.4}, ()),
    "0.60m": (_RATIOS, (11,)),
    "1m": (_RATIOS, (11, 12)),
    "2k": ({**_RATIOS, 13: 0.85}, (11, 12)),  # the released settings, and ours for the scale that they do not know
}
# The paper's thirteen passes, of which the released code skips two. The ratios of scales 11 and 12 are our choice.
_THIRTEEN = {**_RATIOS, 11: 0.65, 12: 0.75}
_NOT_VALIDATED = "quality not validated"


_SIZES = {"125m": ("0.25m", "1m"), "2b": ("0.06m", "0.25m", "0.60m", "1m", "2k"), "8b": ("0.25m", "1m")}


def _infinity(size: str, pixels: str) -> Recipe:
    patched, grids = size == "8b", schedule(f"infinity-{pixels}")
    said = "no weights are published" if size == "125m" else "as published"
    if size == "2b" and pixels != "1m":
        said = "which upstream's code runs with the weights for 1024 px"
    if pixels == "2k":
        said = f"zero-shot, beyond what it was trained for; {_NOT_VALIDATED}"
    return Recipe(
        name=f"infinity-{size}-{pixels}",
        version=1,
        description=f"Infinity {size.upper()} at {16 * grids[-1][0]} px, {said}",
        model=infinity_model(*INFINITY_SIZES["layer12" if size == "125m" else size], bits=56 if patched else 32),
        tokenizer=INFINITY_PATCH_TOKENIZER if patched else INFINITY_TOKENIZER,
        schedule=grids,
        sampling=INFINITY_SAMPLING,
        defaults=INFINITY_8B_DEFAULTS if patched else INFINITY_DEFAULTS,
        chain=infinity_plan,
        resized=infinity_resized,
    )


def _all_infinity() -> list[Recipe]:
    found = []
    for size, pixels in [(size, each) for size, sizes in _SIZES.items() for each in sizes]:
        full = _infinity(size, pixels)
        found.append(full)
        if pixels in _AS_RELEASED:
            ratios, skip = _AS_RELEASED[pixels]
            method = FastVAR(ratios, _CACHE_SCALE, layers=_LAYERS[size], skip=skip)
            found.append(_pruned(full, method, _said(size, pixels)))
        if pixels == "1m":
            method = FastVAR(_THIRTEEN, _CACHE_SCALE, layers=_LAYERS[size])
            said = f"with FastVAR in thirteen passes; ratios are our choice, {_NOT_VALIDATED}"
            found.append(_pruned(full, method, said, "fastvar13"))
    return found


def _said(size: str, pixels: str) -> str:
    if pixels == "2k":
        return "with FastVAR as released, and our ratio at the last scale"
    if size == "2b":
        return "with FastVAR as released"
    return f"with FastVAR's released ratios; layers are our choice, {_NOT_VALIDATED}"


def _all_hart() -> list[Recipe]:
    full = Recipe(
        name="hart-1024",
        version=1,
        description="HART 0.7B at 1024 px, of 24 heads where no checkpoint says how many",
        model=hart_model(),
        tokenizer=HART_TOKENIZER,
        schedule=schedule("hart-1024"),
        sampling=HART_SAMPLING,
        defaults=HART_DEFAULTS,
        chain=hart_plan,
        resized=hart_resized,
    )
    return [full, _pruned(full, FastVAR({12: 0.5, 13: 0.75}, cache_scale=11), "with FastVAR as released")]


RECIPES: dict[str, Recipe] = {
    each.name: each
    for each in (
        *_all_var(),
        _DEMO,
        _pruned(_DEMO, _VAR_FASTVAR, "with FastVAR at the last scale"),
        *_all_infinity(),
        *_all_hart(),
    )
}
