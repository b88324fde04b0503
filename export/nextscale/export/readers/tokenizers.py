"""Tokenizer files: VAR's and HART's VQVAE (the sheet's 1.4 and 3.4), and Infinity's bitwise one (2.5)."""

from __future__ import annotations

from pathlib import Path

from nextscale.export.config import Config
from nextscale.export.readers.needs import count, need
from nextscale.export.state_dict import State
from nextscale.plan.errors import InputError
from nextscale.plan.types import Tokenizer

# Statistics and masks of training, the discriminator, and HART's second decoder, which generation does not use.
IGNORED = (
    "ema_vocab_hit_SV",
    "lfq.mask",
    "disc.",
    "discriminator.",
    "decoder2.",
    "post_quant_conv2.",
)
ENCODER_KEYS = ("encoder.", "quant_conv.")


def tokenizer_of(state: State, config: Config, path: Path) -> Tokenizer:
    """The tokenizer's sizes from its tensors; only the groups of its norms, where not 32, are in ``config.json``.

    How many latents make a token is the transformer's to say; it is 1 here.
    """
    bitwise = "quantize.embedding.weight" not in state and "decoder.conv_in.conv.weight" in state
    conv, norm = ("conv.weight", "norm.weight") if bitwise else ("weight", "weight")
    levels = count(r"decoder\.up\.(\d+)\.", state) or 1
    last, first = f"decoder.norm_out.{norm}", f"decoder.conv_in.{conv}"
    axes = {last: 1, first: 4}
    axes |= {} if bitwise else {"quantize.embedding.weight": 2, "post_quant_conv.weight": 4}
    axes |= {f"decoder.up.{level}.block.0.conv2.{conv}": 4 for level in range(levels)}
    need(state, axes, f"{path} is no {'Infinity' if bitwise else 'VAR'} tokenizer", "the transformer's")
    channels = state[last].shape[0]
    if channels < 1 or channels % config.norm_groups:
        raise InputError(
            f"{path} has {channels} channels, which cannot be normed in {config.norm_groups} groups: "
            "give vae.norm_groups in a config.json beside the model"
        )
    widths = [state[f"decoder.up.{level}.block.0.conv2.{conv}"].shape[0] for level in range(levels)]
    codes = state[first].shape[1]
    vocabulary = 2 if bitwise else state["quantize.embedding.weight"].shape[0]
    partly = len({k.split(".")[3] for k in state if k.startswith("quantize.quant_resi.qresi_ls.")})
    return Tokenizer(
        channels=channels,
        multipliers=tuple(w // channels for w in widths),
        res_blocks=count(r"decoder\.up\.0\.block\.(\d+)\.", state),
        code_channels=codes if bitwise else state["quantize.embedding.weight"].shape[1],
        vocabulary=vocabulary,
        stride=2 ** (levels - 1),
        phi=0 if bitwise else partly or 4,
        norm_groups=config.norm_groups,
        codebook=not bitwise,
        attention=not bitwise,
    )


def encoder_blocks_of(state: State) -> int:
    """Residual blocks per encoder level; the published 2 where the file has no encoder."""
    return count(r"encoder\.down\.0\.block\.(\d+)\.", state) or 2
