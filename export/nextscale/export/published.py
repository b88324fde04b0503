"""How upstream names a checkpoint's files: ``var_d16.pth``, ``vae_ch160v4096z32.pth`` (the sheet's section 1.4)."""

from __future__ import annotations

from nextscale.plan.types import Model, Tokenizer

SUFFIXES = (".safetensors", ".pth")  # in the order in which they are preferred


def published_stems(model: Model, tokenizer: Tokenizer) -> tuple[str, str]:
    """The names of the transformer's and the tokenizer's file, without their suffix."""
    t = tokenizer
    return f"{model.family}_d{model.depth}", f"vae_ch{t.channels}v{t.vocabulary}z{t.code_channels}"
