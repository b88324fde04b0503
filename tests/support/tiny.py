"""A checkpoint small enough to be drawn and exported in a test: two layers, four scales, pictures of 8 px."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import plan_for, recipe, var_model
from nextscale.plan.schedules import squares
from nextscale.plan.types import Sampling, Tokenizer

MODEL = var_model(2, 64, classes=10, vocabulary=64)
TOKENIZER = Tokenizer(32, (1, 2), res_blocks=1, code_channels=32, vocabulary=64, stride=2)
SCHEDULE = squares(1, 2, 3, 4)
SAMPLING = Sampling(top_k=20)
# Harder than what recipes ship: one pruned step follows another, and a layer that does not prune feeds one that does.
PRUNED = FastVAR({-2: 0.4, -1: 0.6}, cache_scale=-3, layers=(1, -1))


def draw_tiny(folder: Path, seed: int = 0, form: str = "pth") -> tuple[Path, Path]:
    """The transformer's and the tokenizer's file, 0.7 and 3 MB."""
    from nextscale.export.draw import draw_checkpoint

    return draw_checkpoint(MODEL, TOKENIZER, SCHEDULE, folder, seed, form)


def export_tiny(
    files: tuple[Path, Path], out: Path, name: str = "var-d16", traced: Any = None, precision: str = "fp32"
) -> Path:
    """The bundle of the tiny checkpoint by a recipe; where that prunes, pruned by ``PRUNED``."""
    from nextscale.export.bundle import Options, export_bundle
    from nextscale.export.checkpoint import load_checkpoint
    from nextscale.runtime.manifest import Recipe

    checkpoint, chosen = load_checkpoint(*files), recipe(name)
    chosen = replace(chosen, methods=(PRUNED,)) if chosen.methods else chosen
    plan = plan_for(chosen, checkpoint.model, checkpoint.tokenizer, checkpoint.schedule, SAMPLING)
    options = Options(plan, Recipe(chosen.name, chosen.version), precision)
    return export_bundle(checkpoint, options, out, lambda stage, done, total, what: None, traced)
