"""What bench_gpu.py runs: models by size and pixels, their bundles, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextscale.compare.sides import Ask
from nextscale.plan.types import Plan

UPSTREAM = "upstream"
LARGE = "infinity-2b-1m"  # at 1024 px; its FastVAR recipe has the published shares
# What matters most first, should time run out. VAR at 256 px, its d36 at 512; Infinity's smaller pictures at 512 px.
MODELS = (LARGE, "var-d16", "var-d36", "infinity-2b-0.25m", "var-d30")


@dataclass(frozen=True)
class Case:
    """One bundle at one batch size."""

    model: str
    recipe: str
    precision: str
    batch: int

    def subject(self, side: str) -> dict[str, str]:
        """What a finding is of."""
        parts = {"recipe": self.recipe, "precision": self.precision, "batch": str(self.batch)}
        return {"model": self.model, **parts, "side": side}


def cases(models: Sequence[str], precisions: Sequence[str], batches: Sequence[int]) -> list[Case]:
    """In the order in which they run: everything of one bundle together."""
    return [
        Case(model, name, precision, batch)
        for model in models
        for precision in precisions
        for name in (model, f"{model}-fastvar")
        for batch in batches
    ]


def ask_of(plan: Plan, batch: int) -> Ask:
    """Different classes, or drawn texts of different lengths; the recipe's settings."""
    classes, defaults = plan.model().classes, dict(plan.defaults)
    labels = tuple(range(batch)) if plan.model().text else tuple(i * classes // batch for i in range(batch))
    return Ask(labels, 0, defaults["guidance_scale"], defaults["top_p"], defaults["temperature"])
