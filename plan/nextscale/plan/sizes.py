"""How many numbers the parts of a model hold, and what decoding a picture costs, from the fact sheet's shapes.

Backbones sheet, sections 1.2 to 1.4, 2.3 to 2.5 and 3.3 to 3.4. Counted are the published parameters that generating
needs; buffers (masks, level indices, the zero bias of keys) are not, and text encoders have models of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nextscale.plan.errors import PlanError
from nextscale.plan.schedules import tokens
from nextscale.plan.types import Grid, Model, Tokenizer

LEVELS = 15  # rows of the level table of a model that runs several schedules: more than any of them has scales
FREQUENCIES = 256  # a number (a scale, a time) as this many cosines and sines, before the MLP that embeds it


def sub_layer_parameters(model: Model, name: str) -> int:
    """Weights that a step reads of one sub-layer of a block. Self-attention is ``attn`` or ``sa``.

    Of cross-attention, ``ca``, that is query, projection and norm: ``begin`` makes the text's keys and values.
    """
    c, f = model.width, model.ffn_width
    known = {"ffn": 3 * c * f if model.gated_ffn else 2 * c * f + f + c, "ca": 2 * c * c + 4 * c}
    known["attn"] = known["sa"] = 4 * c * c + 3 * c + (model.heads if model.qk_norm else 0)
    if name not in known:
        raise PlanError(f"the cost of a sub-layer {name!r} is not known; known are {', '.join(sorted(known))}")
    return known[name]


def block_parameters(model: Model) -> int:
    """Weights that a step reads to run one block: its adaLN projection is ``begin``'s, else it has one norm weight."""
    return sum(sub_layer_parameters(model, name) for name in model.sub_layers) + (0 if model.adaln else model.width)


def integer_parameters(model: Model) -> int:
    """Weights of an int8 bundle that are integers of a byte: the matrices of blocks, and of each block's adaLN."""
    c, f = model.width, model.ffn_width
    matrices = {"attn": 4 * c * c, "sa": 4 * c * c, "ca": 2 * c * c, "ffn": (3 if model.gated_ffn else 2) * c * f}
    return model.depth * sum(matrices[name] for name in model.sub_layers) + integer_adaln(model)


def integer_adaln(model: Model) -> int:
    """Those of them that ``begin`` reads."""
    return model.depth * 6 * model.width**2 if model.adaln and not model.shared_adaln else 0


def begin_parameters(model: Model) -> int:
    """Weights that only ``begin`` reads: class table or text's projections, start position, every adaLN projection."""
    c = model.width
    projection = 6 * c * c + 6 * c
    adaln = projection + model.depth * 6 * c if model.shared_adaln else model.depth * projection
    labels = (model.classes + 1) * c if model.classes else 0
    return (adaln if model.adaln else 0) + 2 * c * c + 2 * c + labels + _start_parameters(model)


def _start_parameters(model: Model) -> int:
    """The start position, or what makes the first tokens of a text; the text's keys and values of every block."""
    c, text = model.width, model.text
    if text is None:
        return c if model.classes else 0
    if text.use == "prefix":
        return text.width * c + c + (text.width if text.norm else 0)
    pooling = c + c + 2 * c * text.width + c * c + c  # query, value bias, keys and values, projection
    context = text.width * c + c + c * c + c
    uncond, norm = text.tokens * text.width, text.width
    return c + uncond + norm + pooling + context + model.depth * (2 * c * c + c)


def head_parameters(model: Model) -> int:
    """The head's linear layer and, in models without adaLN in their blocks, its norm."""
    return model.head_outputs * (model.width + 1) + (0 if model.adaln else model.width)


def embedding_parameters(model: Model, schedule: tuple[Grid, ...]) -> int:
    """Input projection, levels and, in models without rotary positions, the table of positions."""
    positions = sum(tokens(grid) for grid in schedule) if model.rope == "none" else 0
    return (model.code_channels + 1 + positions) * model.width + _level_parameters(model, len(schedule))


def _level_parameters(model: Model, scales: int) -> int:
    """An MLP, or a row for each scale: of this schedule where positions are learned, else of any."""
    if model.level_mlp:
        return (FREQUENCIES + 1) * model.width + (model.width + 1) * model.width
    return (LEVELS if model.rope == "grid" else scales) * model.width


def diffusion_parameters(model: Model) -> int:
    """The residual diffusion's MLP with the norm before it; 0 in a model without."""
    if model.diffusion is None:
        return 0
    w, z = model.diffusion.width, model.code_channels
    embeddings = (FREQUENCIES + 1) * w + (w + 1) * w + (model.width + 1) * w + (z + 1) * w
    block = 2 * w + 2 * (w + 1) * w + 3 * (w + 1) * w
    final = 2 * (w + 1) * w + (w + 1) * 2 * z
    return model.width + embeddings + model.diffusion.depth * block + final


def model_parameters(model: Model, schedule: tuple[Grid, ...]) -> int:
    """Parameters of a transformer, all that its published keys hold."""
    steps = model.depth * block_parameters(model) + head_parameters(model) + embedding_parameters(model, schedule)
    return steps + begin_parameters(model) + diffusion_parameters(model)


class Part(NamedTuple):
    """One layer of the decoder: its weights, FLOPs for one picture, and items of its output."""

    parameters: int
    flops: int
    items: int


def decoder_parts(tokenizer: Tokenizer, grid: Grid) -> Iterator[Part]:
    """The decoder from the code sum, a ``grid`` of latents, to pixels; norms are joined to the layer that follows."""
    widths = [tokenizer.channels * multiplier for multiplier in tokenizer.multipliers]
    top, codes = widths[-1], tokenizer.code_channels
    if tokenizer.codebook:
        yield _conv(codes, codes, grid)
    yield _conv(codes, top, grid)
    yield from _block(top, top, grid)
    if tokenizer.attention:
        yield _attention(top, grid)
    yield from _block(top, top, grid)
    before = top
    for level in reversed(range(len(widths))):
        for block in range(tokenizer.res_blocks):
            yield from _block(before if block == 0 else widths[level], widths[level], grid)
            if tokenizer.attention and level == len(widths) - 1:
                yield _attention(widths[level], grid)
        before = widths[level]
        if level:
            grid = (2 * grid[0], 2 * grid[1])
            yield _conv(before, before, grid)
    yield _conv(before, 3, grid, norm=True)


def quantizer_parameters(tokenizer: Tokenizer) -> int:
    """The codebook, where codes are not signs of bits, and the residual convolutions: what the step graphs read."""
    codes = tokenizer.code_channels
    table = tokenizer.vocabulary * codes if tokenizer.codebook else 0
    return table + tokenizer.phi * (9 * codes * codes + codes)


def tokenizer_parameters(tokenizer: Tokenizer, grid: Grid) -> int:
    """What generation needs of the tokenizer: decoder and quantizer, no encoder."""
    return sum(part.parameters for part in decoder_parts(tokenizer, grid)) + quantizer_parameters(tokenizer)


def _conv(c_in: int, c_out: int, grid: Grid, kernel: int = 3, norm: bool = False) -> Part:
    weights, n = kernel * kernel * c_in * c_out, tokens(grid)
    return Part(weights + c_out + 2 * c_in * norm, 2 * weights * n, c_out * n)


def _block(c_in: int, c_out: int, grid: Grid) -> Iterator[Part]:
    yield _conv(c_in, c_out, grid, norm=True)
    yield _conv(c_out, c_out, grid, norm=True)
    if c_in != c_out:
        yield _conv(c_in, c_out, grid, kernel=1)


def _attention(c: int, grid: Grid) -> Part:
    n = tokens(grid)
    return Part(4 * c * c + 4 * c + 2 * c, 8 * c * c * n + 4 * n * n * c, 3 * c * n)
