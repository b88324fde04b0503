"""Infinity's transformer files (the sheet's section 2.5): flat, or a sharded folder with the same keys."""

from __future__ import annotations

from pathlib import Path

from nextscale.export.config import Config, entries_of
from nextscale.export.readers.needs import count, need
from nextscale.export.state_dict import State
from nextscale.plan.errors import InputError
from nextscale.plan.families.infinity import infinity_model
from nextscale.plan.types import Grid, Model, Text

# Masks of training, which upstream's loader drops too.
__all__ = ["IGNORED", "entries_of", "model_of", "recognises", "schedule_of"]

IGNORED = (
    "lvl_1L",
    "attn_bias_for_masking",
    "zero_k_bias",
    "Infinity_visible_kvlen",
    "Infinity_invisible_qlen",
)


def recognises(state: State) -> bool:
    """Infinity alone pools a text into its start token."""
    return "text_proj_for_sos.ca.mat_q" in state


def model_of(state: State, config: Config, path: Path) -> Model:
    """Everything but the grid of the rotary positions, which follows from the schedule."""
    first = "block_chunks.0.module.0"
    axes = {f"{first}.sa.scale_mul_1H11": 4, f"{first}.ffn.fc1.weight": 2, "cfg_uncond": 2}
    axes |= {"pos_start": 3, "word_embed.weight": 2, "head.weight": 2}
    need(state, axes, f"{path} is no Infinity transformer", "the tokenizer's")
    chunks = count(r"block_chunks\.(\d+)\.", state)
    width, heads = state["pos_start"].shape[-1], state[f"{first}.sa.scale_mul_1H11"].shape[1]
    outputs = state["head.weight"].shape[0]
    if width % heads or outputs % 2:
        raise InputError(
            f"{path} is {width} wide with {heads} heads and gives {outputs} numbers a token: an Infinity's heads "
            "share its width, and it gives two numbers for each bit"
        )
    tokens, text_width = state["cfg_uncond"].shape
    return infinity_model(
        depth=chunks * count(r"block_chunks\.0\.module\.(\d+)\.", state),
        width=width,
        heads=heads,
        chunks=chunks,
        bits=outputs // 2,
        text=Text(tokens, text_width),
        ffn_width=state[f"{first}.ffn.fc1.weight"].shape[0],
    )


def schedule_of(state: State, config: Config, path: Path) -> tuple[Grid, ...] | None:
    """No position is learned for a token, so one file serves every schedule; a config.json may name one."""
    return config.schedule
