"""How many numbers the parts of a model hold, and what decoding a picture costs, from the fact sheet's shapes.

Backbones sheet, sections 1.2 to 1.4. Buffers of training (masks, level indices) are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nextscale.plan.errors import PlanError
from nextscale.plan.schedules import tokens
from nextscale.plan.types import Grid, Model, Tokenizer


def sub_layer_parameters(model: Model, name: str) -> int:
    """Weights of one sub-layer of a block. Self-attention is ``attn`` or ``sa``, cross-attention ``ca``."""
    c, f = model.width, model.ffn_width
    known = {"ffn": 2 * c * f + f + c, "ca": 4 * c * c + 3 * c}
    known["attn"] = known["sa"] = 4 * c * c + 3 * c + (model.heads if model.qk_norm else 0)
    if name not in known:
        raise PlanError(f"the cost of a sub-layer {name!r} is not known; known are {', '.join(sorted(known))}")
    return known[name]


def block_parameters(model: Model) -> int:
    """Weights that a step reads to run one block; its adaLN projection is read by ``begin``."""
    return sum(sub_layer_parameters(model, name) for name in model.sub_layers)


def begin_parameters(model: Model) -> int:
    """Weights that only ``begin`` reads: class table, start position and every adaLN projection."""
    c = model.width
    projection = 6 * c * c + 6 * c
    adaln = projection + model.depth * 6 * c if model.shared_adaln else model.depth * projection
    labels = (model.classes + 1) * c + c if model.classes else 0
    return adaln + 2 * c * c + 2 * c + labels


def head_parameters(model: Model) -> int:
    """The head's linear layer."""
    return model.vocabulary * model.width + model.vocabulary


def embedding_parameters(model: Model, schedule: tuple[Grid, ...]) -> int:
    """Input projection, level table and, in class-conditional models, the table of positions."""
    positions = sum(tokens(grid) for grid in schedule) if model.classes else 0
    return (model.code_channels + 1 + len(schedule) + positions) * model.width


def model_parameters(model: Model, schedule: tuple[Grid, ...]) -> int:
    """Weights of a transformer; text encoders and their projections are not among them."""
    blocks = model.depth * block_parameters(model)
    return blocks + begin_parameters(model) + head_parameters(model) + embedding_parameters(model, schedule)


class Part(NamedTuple):
    """One layer of the decoder: its weights, FLOPs for one picture, and items of its output."""

    parameters: int
    flops: int
    items: int


def decoder_parts(tokenizer: Tokenizer, grid: Grid) -> Iterator[Part]:
    """The decoder from the code sum to pixels, layer by layer (norms are joined to the layer that follows)."""
    widths = [tokenizer.channels * multiplier for multiplier in tokenizer.multipliers]
    top, codes = widths[-1], tokenizer.code_channels
    yield _conv(codes, codes, grid)
    yield _conv(codes, top, grid)
    yield from (*_block(top, top, grid), _attention(top, grid), *_block(top, top, grid))
    before = top
    for level in reversed(range(len(widths))):
        for block in range(tokenizer.res_blocks):
            yield from _block(before if block == 0 else widths[level], widths[level], grid)
            if level == len(widths) - 1:
                yield _attention(widths[level], grid)
        before = widths[level]
        if level:
            grid = (2 * grid[0], 2 * grid[1])
            yield _conv(before, before, grid)
    yield _conv(before, 3, grid, norm=True)


def quantizer_parameters(tokenizer: Tokenizer) -> int:
    """The codebook and the residual convolutions, which the step graphs read."""
    codes = tokenizer.code_channels
    return tokenizer.vocabulary * codes + tokenizer.phi * (9 * codes * codes + codes)


def tokenizer_parameters(tokenizer: Tokenizer, grid: Grid) -> int:
    """What generation needs of the VQVAE: decoder and quantizer, no encoder."""
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
