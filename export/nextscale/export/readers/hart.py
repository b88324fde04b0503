"""HART's transformer files (the sheet's section 3.4), which do not tell their sizes without their ``config.json``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from nextscale.export.config import Config
from nextscale.export.config import entries_of as shared_entries
from nextscale.export.hart_config import hart_config, hart_model_of
from nextscale.export.models.layers import EPS
from nextscale.export.state_dict import State
from nextscale.plan.types import Grid, Model, Tokenizer

IGNORED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")


def recognises(state: State) -> bool:
    """HART alone has a residual diffusion."""
    return any(key.startswith("diffloss.") for key in state)


def model_of(state: State, config: Config, path: Path) -> Model:
    """From tensors and ``config.json``, which must agree."""
    return hart_model_of(state, hart_config(config.path), path)


def entries_of(model: Model, tokenizer: Tokenizer, schedule: tuple[Grid, ...]) -> dict[str, Any]:
    """What no tensor tells, by upstream's names."""
    assert model.text is not None
    assert model.diffusion is not None
    return shared_entries(replace(model, qk_norm=True), tokenizer, schedule) | {
        "patch_nums": [h if h == w else [h, w] for h, w in schedule],
        "num_heads": model.heads,
        "attn_l2_norm": model.qk_norm,
        "context_token": model.text.tokens,
        "num_sampling_steps": str(model.diffusion.steps),
        "sampler": "iddpm",
        "norm_eps": EPS,
    }


def schedule_of(state: State, config: Config, path: Path) -> tuple[Grid, ...] | None:
    """``patch_nums`` of ``config.json``."""
    return config.schedule or hart_config(config.path).schedule
