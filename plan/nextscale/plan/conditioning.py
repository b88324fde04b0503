"""What conditions a model: what a caller gives for each picture, and what ``begin`` makes of it for the steps.

Graph signatures, buffers and the eager models all follow these two lists, so none of them asks which family a model is
of. Fact sheet sections 1.2 (labels), 2.3 (text that blocks attend to), 3.2 and 3.3 (text as the first step's tokens).
"""

from __future__ import annotations

from dataclasses import dataclass

from nextscale.plan.types import Model, Step, Text

# Channels behind those of a text's keys that keep queries from tokens behind its length: a mask that no kernel has to
# know of. Eight, for kernels like multiples of it. Values have as many, of zeros: TensorRT asks one shape of both.
MASK_LANES = 8

# The axis of a text that is cross-attended: as many tokens as the longest text of a pass has, or more. The longest that
# the model takes is its ``text.tokens``; see :func:`longest`.
TEXT = "text"

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Given:
    """An input of ``begin``: ``(images, *shape)``, ``int32`` or ``float32``, written by the caller."""

    name: str
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Condition:
    """An output of ``begin``: ``(rows, *shape)``; the dtype ``compute`` is the plan's precision.

    ``reader`` is the part of a step that reads it: ``sos`` (the first step's input), ``embed``, ``block`` or ``head``.
    ``layer`` is the block that reads it, ``part`` its name there.
    """

    name: str
    shape: Shape
    reader: str
    dtype: str = "float32"
    layer: int | None = None
    part: str = ""

    def read_by(self, step: Step, first: bool) -> bool:
        """Whether a step reads it; ``first`` says that it is the first of its weight set."""
        if self.layer is not None:
            return any(layer.index == self.layer for layer in step.layers)
        return first or self.reader != "sos"


def given(model: Model) -> tuple[Given, ...]:
    """``labels`` of a class-conditional model; ``text`` features with their ``text_length`` of others.

    Where text is cross-attended the second guidance row has a ``negative`` text; of length 0, the learned one.
    Of a text that is cross-attended, features behind its length are not looked at; a prefix is read whole, and those
    behind its length stand at its last position.
    """
    inputs = [Given("labels", (), "int32")] if model.classes else []
    if model.text is not None:
        for name in ("text", "negative") if model.text.use == "cross" else ("text",):
            inputs.append(Given(name, (text_axis(model.text), model.text.width), "float32"))
            inputs.append(Given(f"{name}_length", (), "int32"))
    return tuple(inputs)


def text_axis(text: Text) -> int | str:
    """How many tokens graphs take of a text: any number where blocks attend to it, all of them where it is a prefix."""
    return TEXT if text.use == "cross" else text.tokens


def longest(shape: Shape, model: Model) -> tuple[int, ...]:
    """The numbers of a shape for the longest text that the model takes."""
    tokens = model.text.tokens if model.text else 0
    return tuple(tokens if d == TEXT else int(d) for d in shape)


def conditions(model: Model) -> tuple[Condition, ...]:
    """``sos``, each block's own, then what every step reads; in the order in which graphs list them."""
    prefix = model.text is not None and model.text.use == "prefix"
    start = (model.text.tokens, model.width) if model.text and prefix else (model.width,)
    found = [Condition("sos", start, "sos")]
    for layer in range(model.depth):
        for part, shape, dtype in _of_block(model):
            found.append(Condition(f"{part}.{layer:02d}", shape, "block", dtype, layer, part))
    if model.rope == "text":
        found.append(Condition("position", (), "embed"))
    return (*found, Condition("head", (2, model.width), "head"))


def block_conditions(model: Model, layer: int) -> tuple[Condition, ...]:
    """What the block of a layer reads."""
    return tuple(c for c in conditions(model) if c.reader == "block" and c.layer == layer)


def _of_block(model: Model) -> list[tuple[str, Shape, str]]:
    """Part, shape and dtype of what one block has for itself: adaLN parameters, the text's keys and values."""
    parts: list[tuple[str, Shape, str]] = []
    if model.adaln:
        parts.append(("adaln", (6, model.width), "float32"))
    if model.text is not None and model.text.use == "cross":
        shape = (TEXT, model.heads, model.head_dim + MASK_LANES)
        parts += [("text.k", shape, "compute"), ("text.v", shape, "compute")]
    return parts
