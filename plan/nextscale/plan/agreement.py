"""Whether the models of a plan agree with themselves, with their text and with the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from nextscale.plan.types import Model, Plan, Tokenizer

ROPES = ("none", "grid", "text")
TEXT_USES = ("cross", "prefix")


def disagreements(plan: Plan) -> Iterator[str]:
    """Everything about the weight sets that cannot be, each as a sentence that names the weight set."""
    if plan.tokenizer.patch < 1:
        yield f"the tokenizer has patches of {plan.tokenizer.patch} latents: there must be 1 or more"
    for name, model in plan.models:
        problems = (*_codes(plan.tokenizer, model), *_text(model), *_parts(model))
        yield from (f"model {name!r} {problem}" for problem in problems)


def _codes(tokenizer: Tokenizer, model: Model) -> Iterator[str]:
    """What the model draws is what the tokenizer takes: one code of a codebook, or a bit for every channel's sign."""
    channels = tokenizer.code_channels * tokenizer.patch**2
    if (model.vocabulary, model.code_channels) != (tokenizer.vocabulary, channels):
        has = f"{tokenizer.vocabulary} of {tokenizer.code_channels}"
        patches = f" in each of {tokenizer.patch**2} latents" if tokenizer.patch != 1 else ""
        yield f"predicts {model.vocabulary} codes of {model.code_channels} channels, the tokenizer has {has}{patches}"
    elif tokenizer.codebook and model.bits:
        yield f"draws {model.bits} bits a token, and the tokenizer has a codebook: it takes one code a token"
    elif not tokenizer.codebook and model.bits != model.code_channels:
        yield f"draws {model.bits} bits a token, and the tokenizer takes one for each of {model.code_channels} channels"
    elif model.bits and model.vocabulary != 2:
        yield f"draws bits from a vocabulary of {model.vocabulary}: a bit has 2 values"


def _text(model: Model) -> Iterator[str]:
    """Where text goes, there is a place for it; and what reads text has one."""
    text, attends = model.text, "ca" in model.sub_layers
    if attends and (text is None or text.use != "cross"):
        yield "has cross-attention, 'ca', and no text of the use 'cross'"
    if model.rope == "text" and (text is None or text.use != "prefix"):
        yield "counts positions from its text, and has no text of the use 'prefix'"
    if text is None:
        return
    if text.use not in TEXT_USES:
        yield f"uses its text as {text.use!r}, which is none of {', '.join(TEXT_USES)}"
    if text.use == "cross" and not attends:
        yield f"has a text to attend to, and no 'ca' among its sub-layers {list(model.sub_layers)}"
    least = 2 if text.use == "cross" else 1  # an axis of any length cannot be traced for 1
    if text.tokens < least or text.width < 1:
        yield f"has a text of {text.tokens} vectors of {text.width} numbers: give it {least} or more, of 1 or more"


def _parts(model: Model) -> Iterator[str]:
    """The other numbers of a model agree."""
    if min(model.depth, model.width, model.heads, model.ffn_width) < 1:
        sizes = f"{model.depth} layers, width {model.width}, {model.heads} heads, an FFN of {model.ffn_width}"
        yield f"has {sizes}: each must be 1 or more"
    if model.heads * model.head_dim != model.width:
        yield f"has {model.heads} heads of {model.head_dim}, which are not its width {model.width}"
    if model.shared_adaln and not model.adaln:
        yield "shares adaLN parameters, and its blocks have none"
    if model.rope not in ROPES:
        yield f"has the rope {model.rope!r}, which is none of {', '.join(ROPES)}"
    if model.rope == "grid" and model.rope_grid is None:
        yield "has rotary positions on a grid, and no rope_grid"
    if model.rope_grid is not None and (model.rope == "none" or min(model.rope_grid) < 1):
        yield f"has the rope_grid {model.rope_grid}, of which its rope {model.rope!r} can count no places"
    if model.rope != "none" and model.head_dim % 4:
        yield f"has heads of {model.head_dim}: rotary positions on two axes need a multiple of 4"
    if model.chunks < 0 or (model.chunks and model.depth % model.chunks):
        yield f"has {model.depth} blocks, which are not {model.chunks} groups of as many"
    if model.diffusion is not None:
        if min(model.diffusion.width, model.diffusion.depth, model.diffusion.steps - 1) < 1:
            yield "has a residual diffusion without width or blocks, or of fewer than 2 steps"
        if model.code_channels % 2:
            yield f"has codes of {model.code_channels} channels: a residual diffusion draws its noise in pairs of them"
