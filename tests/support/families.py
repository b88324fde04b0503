"""Infinity and HART small enough to be drawn and exported in a test, from files of exactly the published keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nextscale.plan.families.hart import HART_TOKENIZER, hart_model
from nextscale.plan.families.infinity import INFINITY_PATCH_TOKENIZER, INFINITY_TOKENIZER, infinity_model
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import Method, Recipe, plan_for, recipe
from nextscale.plan.types import Diffusion, Grid, Model, Plan, Text, Tokenizer

TEXT_TOKENS, TEXT_WIDTH = 20, 128
# One scale is not square; the last two are pruned, the first layer is not.
SCHEDULE: tuple[Grid, ...] = ((1, 1), (3, 2), (4, 4), (6, 5))
PRUNED = FastVAR({-2: 0.25, -1: 0.6}, cache_scale=-3, layers=(1, -1))


@dataclass(frozen=True)
class Small:
    """A family's recipe, and the numbers that stand in for the published ones."""

    recipe: str
    model: Model
    tokenizer: Tokenizer

    def draw(self, folder: Path, form: str = "safetensors") -> tuple[Path, Path]:
        """The transformer and the tokenizer."""
        from nextscale.export.draw import draw_checkpoint

        return draw_checkpoint(self.model, self.tokenizer, SCHEDULE, folder, form=form)

    def load(self, files: tuple[Path, Path], text_tokens: int | None = TEXT_TOKENS) -> Any:
        """The checkpoint, for short texts where the model attends to them."""
        from nextscale.export.checkpoint import load_checkpoint

        crosses = self.model.text is not None and self.model.text.use == "cross"
        return load_checkpoint(*files, SCHEDULE, text_tokens=text_tokens if crosses else None)

    def chosen(self, *methods: Method) -> Recipe:
        """The recipe with these methods."""
        return replace(recipe(self.recipe), methods=methods)

    def plan(self, checkpoint: Any, *methods: Method) -> Plan:
        """The plan of a checkpoint's numbers."""
        return plan_for(self.chosen(*methods), checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)


def _tiny(tokenizer: Tokenizer, **numbers: Any) -> Tokenizer:
    return replace(tokenizer, channels=32, multipliers=(1, 2), res_blocks=1, stride=2, **numbers)


INFINITY = Small(
    "infinity-125m-0.25m",
    infinity_model(3, 64, 4, chunks=1, bits=4, text=Text(512, TEXT_WIDTH)),
    _tiny(INFINITY_TOKENIZER, code_channels=4),
)
PATCHED = Small(
    "infinity-8b-0.25m",
    infinity_model(2, 64, 4, chunks=2, bits=12, text=Text(512, TEXT_WIDTH)),
    _tiny(INFINITY_PATCH_TOKENIZER, code_channels=3),
)
HART = Small(
    "hart-1024",
    hart_model(
        2,
        64,
        4,
        text=Text(TEXT_TOKENS, TEXT_WIDTH, "prefix"),
        diffusion=Diffusion(16, 2, 8),
        vocabulary=700,
        code_channels=4,
    ),
    _tiny(HART_TOKENIZER, code_channels=4, vocabulary=700),
)
SMALL = {"infinity": INFINITY, "patched": PATCHED, "hart": HART}
