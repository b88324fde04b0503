"""What the performance suite measures: models, their variants, and who makes their pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import Method, Recipe, plan_for, recipe, var_model
from nextscale.plan.types import Plan
from nextscale.plan.validate import validate

UPSTREAM, EAGER, COMPILED, DYNAMIC, OURS = "upstream", "eager", "torch.compile", "dynamic ONNX", "nextscale"
SIDES = {
    UPSTREAM: "eager PyTorch as upstream writes it (`upstream_var.py`)",
    EAGER: "eager PyTorch as well written as we can: our own eager model",
    COMPILED: "the same through `torch.compile`",
    DYNAMIC: "by hand: one ONNX graph of dynamic lengths for all steps, in plain sessions (`dynamic_onnx.py`)",
    OURS: "a bundle on its packed target (`nextscale build --flavor onnxruntime-cpu`)",
}
FULL, INT8 = "full", "int8"
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@dataclass(frozen=True)
class Variant:
    """One way to run a model. ``accuracy`` names the demo model's variant of the same shares, by evaluate_demo.py."""

    name: str
    methods: tuple[Method, ...] = ()
    precision: str = "fp32"
    accuracy: str | None = None


@dataclass(frozen=True)
class Contender:
    """Who makes the pictures of which variant."""

    side: str
    variant: str

    def __str__(self) -> str:
        return f"{self.side}, {self.variant}"


@dataclass(frozen=True)
class Subject:
    """A model, its variants and their contenders; ``quick`` are those of a quick run, none where it is left out.

    ``runs`` are the rounds that count, in which every contender makes one picture; ``pictures`` those of ours, in
    further rounds without the others. ``batches`` beside 1 are measured where they are named, by ``batched`` sides.
    ``folder`` holds the model's checkpoint, None for drawn weights.
    """

    name: str
    title: str
    recipe: Recipe
    variants: tuple[Variant, ...]
    contenders: tuple[Contender, ...]
    quick: tuple[Contender, ...] = ()
    runs: int = 15
    pictures: int = 15
    batches: tuple[int, ...] = ()
    batched: tuple[str, ...] = (UPSTREAM, EAGER, DYNAMIC, OURS)
    check: str = "numbers"
    folder: Path | None = None

    def variant(self, name: str) -> Variant:
        """The variant of that name."""
        return next(each for each in self.variants if each.name == name)

    def plan(self, variant: Variant) -> Plan:
        """What a variant runs."""
        plan = plan_for(replace(self.recipe, methods=()))
        for method in variant.methods:
            plan = method(plan)
        return validate(plan)


def fastvar(kept: str, *ratios: float, accuracy: str | None = None) -> Variant:
    """FastVAR in all layers at the last two scales, restored from the one before them; ``kept`` is its name."""
    first, last = ratios
    return Variant(kept, (FastVAR({-2: first, -1: last}, -3),), accuracy=accuracy)


def seats(sides: tuple[str, ...], *variants: str) -> tuple[Contender, ...]:
    """Those sides for each of those variants."""
    return tuple(Contender(side, variant) for variant in variants for side in sides)


_D36_AT_12 = replace(recipe("var-d36"), name="var-d36-of-12", model=replace(var_model(36, shared_adaln=True), depth=12))
_KEPT = ("fastvar 60, 40 %", "fastvar 60, 50 %", "fastvar 40, 25 %")
_IN_INT8 = Variant(INT8, precision=INT8)
_ALL = (UPSTREAM, EAGER, COMPILED, DYNAMIC, OURS)

SUBJECTS = (
    Subject(
        "demo",
        "The demo model, 64 px",
        recipe("demo"),
        (Variant(FULL), Variant("fastvar", recipe("demo-fastvar").methods, accuracy="fastvar"), _IN_INT8),
        (*seats(_ALL, FULL), *seats((UPSTREAM, EAGER, OURS), "fastvar"), Contender(OURS, INT8)),
        (*seats(_ALL, FULL), *seats((UPSTREAM, OURS), "fastvar"), Contender(OURS, INT8)),
        pictures=50,
        batches=(2, 4),
        folder=CHECKPOINTS / "demo",
    ),
    Subject(
        "d16",
        "VAR-d16, 256 px",
        recipe("var-d16"),
        (Variant(FULL), fastvar(_KEPT[0], 0.4, 0.6, accuracy="last two 40, 60 %"), _IN_INT8),
        (*seats(_ALL, FULL), *seats((UPSTREAM, EAGER, OURS), _KEPT[0]), Contender(OURS, INT8)),
        (*seats((UPSTREAM, OURS), FULL), Contender(OURS, _KEPT[0])),
        pictures=50,
        batches=(2, 4),
        check="signatures",
    ),
    Subject(
        "d36-512",
        "VAR-d36's shape, cut to 12 of 36 layers, 512 px",
        _D36_AT_12,
        (
            Variant(FULL),
            fastvar(_KEPT[1], 0.4, 0.5, accuracy="last two 40, 50 %"),
            fastvar(_KEPT[2], 0.6, 0.75, accuracy="last two 60, 75 %"),
        ),
        seats((UPSTREAM, OURS), FULL, _KEPT[1], _KEPT[2]),
        runs=7,
        pictures=7,
        check="signatures",
    ),
)
