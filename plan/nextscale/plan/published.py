"""What others have measured of the models that recipes are of, to stand beside the plan's own figures.

Backbones sheet, sections 2.7 and 4.3. Such seconds are of PyTorch, and of whole pictures where nothing else is said.
FastVAR's tables name no GPU; its README speaks of an RTX 3090.
"""

from __future__ import annotations

from dataclasses import dataclass

from nextscale.plan.recipes import plan_for, recipe
from nextscale.plan.types import Plan


@dataclass(frozen=True)
class Published:
    """Seconds of one picture and GB of memory, None where they are not told; ``gpu`` is empty where it is not named."""

    source: str
    gpu: str
    seconds: float | None
    gigabytes: float | None = None


_TABLES = "FastVAR, tables 1 and 5"
_ISSUE = "Infinity, issue 27"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "infinity-2b-1m": (
        Published(_TABLES, "", 2.61, 16.1),
        Published(_ISSUE, "H100", 0.8),
        Published(f"{_ISSUE}, a user's", "A100", 1.15),
    ),
    "infinity-2b-1m-fastvar": (Published(_TABLES, "", 0.95, 11.9),),
    "infinity-2b-2k-fastvar": (Published("FastVAR, abstract", "RTX 3090", 1.5, 15.0),),
    "hart-1024": (Published(_TABLES, "", 0.95),),
    "hart-1024-fastvar": (Published(_TABLES, "", 0.63),),
}


def published(plan: Plan, images: int = 1) -> tuple[Published, ...]:
    """What is published of a plan: that of its recipe, if it is the recipe's own plan and makes one picture."""
    if images != 1 or plan.name not in PUBLISHED or plan != plan_for(recipe(plan.name)):
        return ()
    return PUBLISHED[plan.name]
