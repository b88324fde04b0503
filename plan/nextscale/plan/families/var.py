"""VAR, class-conditional (fact sheet, section 1): sizes, tokenizer and upstream's demonstration settings."""

from __future__ import annotations

from dataclasses import replace

from nextscale.plan.families.heads import head_dim
from nextscale.plan.types import Model, Sampling, Tokenizer

# The tokenizer of `vae_ch160v4096z32.pth` (fact sheet 1.3).
VAR_TOKENIZER = Tokenizer(160, (1, 1, 2, 2, 4), res_blocks=3, code_channels=32, vocabulary=4096, stride=16)

# Upstream's demonstration settings (fact sheet 1.5); its figures for FID use guidance 1.5 and top-p 0.96.
VAR_SAMPLING = Sampling(top_k=900)
VAR_DEFAULTS = (("guidance_scale", 4.0), ("top_p", 0.95), ("temperature", 1.0))


def var_resized(was: Model, depth: int | None, width: int | None, heads: int | None) -> Model:
    """The same model of other sizes; width and heads follow the depth where it alone is given."""
    if depth is None:
        width, heads = width or was.width, heads or (was.heads if width is None else None)
    sizes = var_model(depth or was.depth, width, heads)
    return replace(
        was,
        depth=sizes.depth,
        width=sizes.width,
        heads=sizes.heads,
        head_dim=sizes.head_dim,
        ffn_width=sizes.ffn_width,
    )


def var_model(
    depth: int,
    width: int | None = None,
    heads: int | None = None,
    classes: int = 1000,
    vocabulary: int = 4096,
    code_channels: int = 32,
    ffn_ratio: float = 4.0,
    shared_adaln: bool = False,
    qk_norm: bool = True,
) -> Model:
    """A VAR's numbers by its builder's rule (fact sheet 1.1), width ``64 * depth`` and ``depth`` heads unless given."""
    width, heads = width or 64 * depth, heads or depth
    return Model(
        family="var",
        depth=depth,
        width=width,
        heads=heads,
        head_dim=head_dim(width, heads),
        ffn_width=round(ffn_ratio * width),
        vocabulary=vocabulary,
        code_channels=code_channels,
        classes=classes,
        qk_norm=qk_norm,
        shared_adaln=shared_adaln,
    )
