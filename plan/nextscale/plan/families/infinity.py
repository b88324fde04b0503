"""Infinity, text to image by bits (fact sheet, section 2): sizes, tokenizers, guidance, upstream's settings."""

from __future__ import annotations

from dataclasses import replace

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.families.heads import head_dim, heads_of
from nextscale.plan.ratios import rope_grid
from nextscale.plan.types import Grid, Guidance, Model, Plan, Sampling, Text, Tokenizer

# `infinity_vae_d32reg.pth`, and `infinity_vae_d56_f8_14_patchify.pth`, of which four latents make a token (2.1, 2.5).
INFINITY_TOKENIZER = Tokenizer(
    channels=128,
    multipliers=(1, 2, 4, 4, 4),
    res_blocks=3,
    code_channels=32,
    vocabulary=2,
    stride=16,
    phi=0,
    codebook=False,
    attention=False,
)
INFINITY_PATCH_TOKENIZER = replace(INFINITY_TOKENIZER, multipliers=(1, 2, 4, 4), code_channels=14, stride=8, patch=2)

# Depth, width, heads and chunks by upstream's names without `infinity_` (2.1).
INFINITY_SIZES = {
    "layer12": (12, 768, 8, 4),
    "layer16": (16, 1152, 12, 4),
    "layer24": (24, 1536, 16, 4),
    "2b": (32, 2048, 16, 8),
    "layer32": (32, 2080, 20, 4),
    "layer40": (40, 2688, 24, 4),
    "layer48": (48, 3360, 28, 4),
    "8b": (40, 3584, 28, 8),
}

# A bit has two values, so that upstream's top_k of 900 keeps all; the temperature divides logits before guidance (2.6).
INFINITY_SAMPLING = Sampling(top_k=0, order=("temperature", "guidance", "top_k", "top_p"))
# Upstream recommends for the 2B a guidance of 3 or 4 at a temperature of 0.5, for the 8B 3 at 1 (2.1).
INFINITY_DEFAULTS = (("guidance_scale", 3.0), ("top_p", 0.97), ("temperature", 0.5))
INFINITY_8B_DEFAULTS = (("guidance_scale", 3.0), ("top_p", 0.97), ("temperature", 1.0))


def infinity_model(
    depth: int,
    width: int,
    heads: int,
    chunks: int = 1,
    bits: int = 32,
    text: Text | None = None,
    ffn_width: int | None = None,
) -> Model:
    """An Infinity's numbers by its builder's rule (2.1): FFN width the nearest 256 to ``4 * width``, half to even.

    ``bits`` is the width of a token, ``chunks`` how many groups upstream has its blocks in. The grid of its rotary
    positions follows from the schedule: see :func:`infinity_plan`.
    """
    return Model(
        family="infinity",
        depth=depth,
        width=width,
        heads=heads,
        head_dim=head_dim(width, heads),
        ffn_width=ffn_width or round(4 * width / 256) * 256,
        vocabulary=2,
        code_channels=bits,
        sub_layers=("sa", "ca", "ffn"),
        shared_adaln=True,
        rope="grid",
        chunks=chunks,
        bits=bits,
        text=text or Text(tokens=512, width=2048),
    )


def infinity_resized(was: Model, depth: int | None, width: int | None, heads: int | None) -> Model:
    """The same model of other sizes; heads keep theirs where it alone is not given, chunks share the depth evenly."""
    depth, width = depth or was.depth, width or was.width
    heads = heads or heads_of(was, width)
    chunks = max(n for n in range(1, was.chunks + 1) if depth % n == 0)
    ffn = None if width > 32 else 4 * width
    return infinity_model(depth, width, heads, chunks, was.bits, was.text, ffn)


def infinity_guidance(schedule: tuple[Grid, ...]) -> Guidance:
    """``g conditional + (1 - g) unconditional`` at every scale (2.6): 3 here is what VAR calls 2."""
    return Guidance(("conditional", "unconditional"), (((0.0, 1.0), (1.0, -1.0)),) * len(schedule))


def infinity_plan(
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    schedule: tuple[Grid, ...],
    sampling: Sampling,
    *,
    defaults: tuple[tuple[str, float], ...] = (),
) -> Plan:
    """The plain chain: constant guidance, bilinear both ways (2.6).

    A model without a ``rope_grid`` gets the one of the schedule's ratio, :func:`nextscale.plan.ratios.rope_grid`.
    """
    if model.rope == "grid" and model.rope_grid is None:
        model = replace(model, rope_grid=rope_grid(schedule))
    guidance, resize = infinity_guidance(schedule), ("bilinear", "bilinear")
    return next_scale_plan(
        name, model, tokenizer, schedule, sampling, guidance=guidance, defaults=defaults, resize=resize
    )
