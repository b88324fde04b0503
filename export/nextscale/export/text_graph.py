"""The graph ``text`` of a bundle: a prompt's ids to its features, composed of pieces as the other graphs are.

It reads ``ids.in (images, T) int32`` and ``length.in (images,) int32`` and makes ``text.out (images, T, width)
float32``. Weights are called ``text/<checkpoint key>``, and what the encoder folds ``derived/text/<name>``.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn

from nextscale.export.compose import Composer
from nextscale.export.text_encoder import TextEncoder
from nextscale.export.text_folder import encoder_of
from nextscale.export.text_qwen2 import Qwen2Encoder
from nextscale.export.text_t5 import T5Encoder
from nextscale.export.trace import POSITIONS, Argument, Component, Piece, Symbols, trace, without_weights
from nextscale.plan.conditioning import TEXT
from nextscale.runtime.manifest import IMAGES, Graph

DERIVED = {**T5Encoder.DERIVED, **Qwen2Encoder.DERIVED}
IDS, LENGTH, FEATURES = "ids.in", "length.in", "text.out"


class Begin(nn.Module):
    """Ids and lengths to the residual stream and the bias on all scores."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.text = encoder

    def forward(self, ids: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        return self.text.begin(ids, length)


class Finish(nn.Module):
    """The residual stream to features."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.text = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.text.finish(x)


class Block(nn.Module):
    """One block, for all, with the derived tensors that it reads."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.block, self.text = encoder.blocks[1][0], nn.Module()
        for name in encoder.BLOCK_BUFFERS:
            self.text.register_buffer(name, encoder.get_buffer(name))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        out: Tensor = self.block(x, bias, *self.text.buffers())
        return out


def text_graph(encoder: TextEncoder, signature: Graph, traced: dict[Hashable, Component] | None = None) -> Composer:
    """The composed graph of an encoder in its precision; its weights are named, not there yet.

    ``traced`` may be one dict for several exports of a process. One block is traced for all of them.
    """
    traced = {} if traced is None else traced
    kind = ("text", encoder.sizes, encoder.tokens, len(encoder.prefix), encoder.dtype)
    parts = [(*kind, part) for part in ("begin", "block", "finish")]
    if not all(key in traced for key in parts):
        with without_weights() as mode:
            blank = encoder_of(encoder.sizes, encoder.tokens, encoder.prefix).eval().requires_grad_(False).fold()
            pieces = text_pieces(blank.compute_in(encoder.dtype))
        symbols = Symbols(1, blank.tokens, len(blank.prefix))
        traced |= zip(parts, trace(pieces, mode, symbols), strict=True)
    begin, block, finish = (traced[key] for key in parts)

    composer = Composer(signature)
    bound = {IDS: IDS, LENGTH: LENGTH, "x.out": "begin/x", "bias.out": "begin/bias"}
    composer.place(begin, "begin", "begin", bound, text_names(begin.weights))
    place, blocks = encoder.blocks
    x = "begin/x"
    for index in range(len(blocks)):
        at = f"{place}.{index}"
        bound = {"x.in": x, "bias.in": "begin/bias", "x.out": f"{at}/x"}
        composer.place(block, "block", at, bound, text_names(block.weights, at))
        x = f"{at}/x"
    composer.place(finish, "finish", "finish", {"x.in": x, FEATURES: FEATURES}, text_names(finish.weights))
    return composer


def text_pieces(encoder: TextEncoder) -> tuple[Piece, Piece, Piece]:
    """Before the blocks, a block, behind the blocks; for texts of any length, whatever the signature asks for."""
    given = (Argument(IDS, (IMAGES, TEXT), torch.int32), Argument(LENGTH, (IMAGES,), torch.int32))
    x = Argument("x.in", (IMAGES, POSITIONS if encoder.prefix else TEXT, encoder.width))
    return (
        Piece("text.begin", Begin(encoder), given, ("x.out", "bias.out")),
        Piece("text.block", Block(encoder), (x, Argument("bias.in", encoder.bias_shape)), ("x.out",)),
        Piece("text.finish", Finish(encoder), (x,), (FEATURES,)),
    )


def text_names(weights: Iterable[str], block: str = "") -> dict[str, str]:
    """A piece's weights, as it names them, to the bundle's names; ``block`` is where a block stands."""
    names = {}
    for name in weights:
        root, _, key = name.partition(".")
        key = f"{block}.{key}" if root == "block" else key
        names[name] = f"{'derived/' if key in DERIVED else ''}text/{key}"
    return names


def text_tensors(names: Iterable[str], encoder: TextEncoder) -> dict[str, Tensor]:
    """The values behind the bundle's names."""
    state = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    return {name: state[name.partition("text/")[2]].detach().contiguous() for name in names}
