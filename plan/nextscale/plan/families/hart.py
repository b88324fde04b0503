"""HART, text to image with a residual diffusion at the last scale (fact sheet, section 3)."""

from __future__ import annotations

from dataclasses import replace

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.families.heads import head_dim, heads_of
from nextscale.plan.families.var import VAR_TOKENIZER
from nextscale.plan.schedules import scale_ratio
from nextscale.plan.types import Diffusion, Grid, Guidance, Model, Plan, Sampling, Text, Tokenizer

# VAR's tokenizer with weights of its own; only the last scale's codes go without a residual convolution (3.3).
HART_TOKENIZER = VAR_TOKENIZER

# Upstream ignores what it is given as top_k and has `more_smooth` on; its top_p of 0 is off, as 1 is here (3.5).
HART_SAMPLING = Sampling(top_k=600, smooth=True)
HART_DEFAULTS = (("guidance_scale", 4.5), ("top_p", 1.0), ("temperature", 1.0))
NARROWED = 7  # the scale from which on half as many codes are drawn from


def hart_model(
    depth: int = 24,
    width: int = 1536,
    heads: int = 24,
    text: Text | None = None,
    diffusion: Diffusion | None = None,
    vocabulary: int = 4096,
    code_channels: int = 32,
    ffn_ratio: float = 4.0,
    qk_norm: bool = False,
    level_mlp: bool = True,
) -> Model:
    """HART's numbers as the fact sheet infers them for the published 0.7B (3.1); a checkpoint's ``config.json`` counts.

    The number of its heads is not known: 24 heads of 64 are an assumption, which changes no count but that of heads.
    """
    return Model(
        family="hart",
        depth=depth,
        width=width,
        heads=heads,
        head_dim=head_dim(width, heads),
        ffn_width=int(width * ffn_ratio * 2 / 3 + 255) // 256 * 256,
        vocabulary=vocabulary,
        code_channels=code_channels,
        qk_norm=qk_norm,
        adaln=False,
        rope="text",
        gated_ffn=True,
        level_mlp=level_mlp,
        text=text or Text(tokens=300, width=1536, use="prefix"),
        diffusion=diffusion or Diffusion(width=1024, depth=6, steps=8),
    )


def hart_resized(was: Model, depth: int | None, width: int | None, heads: int | None) -> Model:
    """The same model of other sizes; heads keep theirs where they are not given."""
    width = width or was.width
    heads = heads or heads_of(was, width)
    sizes = hart_model(depth or was.depth, width, heads)
    return replace(
        was,
        depth=sizes.depth,
        width=width,
        heads=heads,
        head_dim=sizes.head_dim,
        ffn_width=sizes.ffn_width,
    )


def hart_ratio(scale: int, scales: int) -> float:
    """How far along the schedule a scale counts for guidance and smoothing: the last as the one before it (3.5)."""
    return scale_ratio(min(scale, max(scales - 2, 0)), scales)


def hart_guidance(schedule: tuple[Grid, ...]) -> Guidance:
    """VAR's ramp, ``(1+t) conditional - t unconditional``, that stays at the last scale but one."""
    ratios = [hart_ratio(scale, len(schedule)) for scale in range(len(schedule))]
    weights = tuple(((1.0, ratio), (0.0, -ratio)) for ratio in ratios)
    return Guidance(("conditional", "unconditional"), weights)


def hart_plan(
    name: str,
    model: Model,
    tokenizer: Tokenizer,
    schedule: tuple[Grid, ...],
    sampling: Sampling,
    *,
    defaults: tuple[tuple[str, float], ...] = (),
) -> Plan:
    """The plain chain (3.5): half of ``top_k`` from scale 7 on, the last codes refined and without a convolution."""
    plan = next_scale_plan(
        name, model, tokenizer, schedule, sampling, guidance=hart_guidance(schedule), defaults=defaults
    )
    steps = []
    for step in plan.steps:
        top_k = sampling.top_k if step.scale < NARROWED else max(1, sampling.top_k // 2) if sampling.top_k else 0
        ratio = hart_ratio(step.scale, len(schedule)) if sampling.smooth else 0.0
        steps.append(replace(step, sampling=replace(sampling, top_k=top_k, smooth_ratio=ratio)))
    last = steps[-1]
    unfiltered = replace(last.next_input, phi=None)
    steps[-1] = replace(last, next_input=unfiltered, diffusion=model.diffusion is not None)
    return replace(plan, steps=tuple(steps))
