"""VAR's transformer files (the sheet's section 1.4)."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from nextscale.export.config import Config, entries_of
from nextscale.export.lazy import Lazy
from nextscale.export.readers.needs import count, need
from nextscale.export.state_dict import State
from nextscale.plan.errors import InputError
from nextscale.plan.schedules import SCHEDULES
from nextscale.plan.types import Grid, Model

__all__ = ["IGNORED", "entries_of", "model_of", "recognises", "schedule_of"]

IGNORED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")


def recognises(state: State) -> bool:
    """VAR alone has a table of classes."""
    return "class_emb.weight" in state


def model_of(state: State, config: Config, path: Path) -> Model:
    """Only a transformer without ``scale_mul_1H11`` needs ``config.json``, for its heads."""
    scale = state.get("blocks.0.attn.scale_mul_1H11")
    axes = {"pos_start": 3, "class_emb.weight": 2, "word_embed.weight": 2, "head.weight": 2}
    axes |= {"blocks.0.ffn.fc1.weight": 2} | ({} if scale is None else {"blocks.0.attn.scale_mul_1H11": 4})
    need(state, axes, f"{path} is no VAR transformer", "the tokenizer's")
    width = state["pos_start"].shape[-1]
    heads = scale.shape[1] if scale is not None else config.heads or width // 64
    if heads < 1 or width % heads:
        raise InputError(f"{path} is {width} wide, which {heads} heads cannot share: give heads in a config.json")
    return Model(
        family="var",
        depth=count(r"blocks\.(\d+)\.", state),
        width=width,
        heads=heads,
        head_dim=width // heads,
        ffn_width=state["blocks.0.ffn.fc1.weight"].shape[0],
        vocabulary=state["head.weight"].shape[0],
        code_channels=state["word_embed.weight"].shape[1],
        classes=state["class_emb.weight"].shape[0] - 1,
        qk_norm=scale is not None,
        shared_adaln="shared_ada_lin.1.weight" in state,
    )


def schedule_of(state: State, config: Config, path: Path) -> tuple[Grid, ...]:
    """From config.json, else the level of each token, else the published schedule of that length."""
    if config.schedule:
        return config.schedule
    need(state, {"pos_1LC": 3}, f"{path} is no VAR transformer", "the tokenizer's")
    total = state["pos_1LC"].shape[1]
    level = Lazy.of(state.get("lvl_1L", torch.empty(0))).read().flatten()
    known = [grids for grids in SCHEDULES.values() if sum(h * w for h, w in grids) == total]
    if level.dtype == torch.int64 and len(level) == total and 0 <= int(level.min()) <= int(level.max()) < total:
        lengths = level.bincount().tolist()
        known = [grids for grids in known if [h * w for h, w in grids] == lengths]
        squares = tuple((math.isqrt(n), math.isqrt(n)) for n in lengths)
        if [h * w for h, w in squares] == lengths:
            return squares
    if known:
        return known[0]
    raise InputError(
        f"the schedule of {path} ({total} tokens) is not known: give --schedule, "
        "or patch_nums in a config.json beside it"
    )
