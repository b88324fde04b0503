"""What drawn bundles have where their plan is conditioned on text: a tokenizer, an encoder, a ``begin`` of texts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto
from support.net import Net

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.conditioning import longest
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.types import Diffusion, Grid, Model, Plan, Sampling, Text, Tokenizer
from nextscale.runtime.manifest import Graph

# A text that blocks attend to, and bits; a text that is the first step's tokens, and residual diffusion.
CROSS = Model("infinity", 2, 8, 2, 4, 32, 2, 3, sub_layers=("sa", "ca", "ffn"), bits=3, text=Text(6, 5))
BITWISE = Tokenizer(8, (1, 2), 1, 3, 2, stride=2, phi=0, codebook=False, attention=False)
CODES = Tokenizer(8, (1, 2), 1, 4, 11, stride=2)
PREFIX = Model("hart", 2, 8, 2, 4, 32, 11, 4, rope="text", text=Text(6, 5, "prefix"), diffusion=Diffusion(8, 1, 3))
WORDS = ("a", "red", "green", "cat", "castle")  # what the drawn tokenizer knows
IDS = 3 + len(WORDS)  # with those that stand around words


def text_plan(schedule: tuple[Grid, ...], prefix: bool, width: int) -> Plan:
    """A plan that is conditioned on text: attended to, by a bitwise model; or the first step's tokens."""
    model, tokenizer = (PREFIX, CODES) if prefix else (CROSS, BITWISE)
    model = replace(model, width=width, head_dim=width // model.heads)
    defaults = (("guidance_scale", 3.0), ("top_p", 0.9), ("temperature", 1.0))
    plan = next_scale_plan("tiny-text", model, tokenizer, schedule, Sampling(0), defaults=defaults)
    if prefix:
        plan = replace(plan, steps=(*plan.steps[:-1], replace(plan.steps[-1], diffusion=True)))
    return FastVAR({-1: 0.5}, cache_scale=2)(plan)


def words_tokenizer(length: int) -> str:
    """A ``tokenizer.json``: whole words, ``</s>`` at the end, padded on the right to ``length``."""
    import tokenizers

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: 3 + i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_padding(direction="right", pad_id=0, pad_token="<pad>", length=length)
    return str(tokenizer.to_str())


def text_graph(net: Net, plan: Plan, graph: Graph, weights: Path) -> None:
    """An embedding by id and place; what stands behind a prompt's length has features too, as encoders leave them."""
    text = plan.models[0][1].text
    assert text is not None
    embedded = net("Gather", net.weight("text/embed.weight", weights), "ids.in")  # (B, T, W)
    every = net.const(np.cos(np.arange(text.tokens * text.width)).reshape(text.tokens, text.width))
    places = as_long_as(net, "ids.in", every, 0)
    of_length = net("Unsqueeze", net("Cast", "length.in", to=TensorProto.FLOAT), net.const([1, 2], np.int64))
    net("Add", net("Add", embedded, places), net("Mul", of_length, net.const(0.1)), output="text.out")


def begin_graph(net: Net, plan: Plan, graph: Graph, weights: Path) -> None:
    """Conditional rows of ``text``; the others of ``negative``, or where there is none of a table of their own.

    A text that is a prefix is read with its padding; its length is a position.
    """
    text, model = plan.models[0][1].text, plan.models[0][1]
    assert text is not None
    table, all_tokens = net.weight("var/cfg_uncond", weights), net.const(text.tokens, np.int32)
    lengths = ["text_length.in"]
    if text.use == "cross":
        rows = [_pooled(net, text, "text.in", "text_length.in")]
        none = net("Equal", "negative_length.in", net.const(0, np.int32))
        lengths.append(net("Where", none, "text_length.in", "negative_length.in"))
        pick = net("Unsqueeze", none, net.const([1, 2], np.int64))
        table = as_long_as(net, "text.in", table, 0)
        rows.append(_pooled(net, text, net("Where", pick, table, "negative.in"), lengths[1]))
    else:
        lengths.append(net("Add", net("Mul", "text_length.in", net.const(0, np.int32)), all_tokens))
        rows = [_pooled(net, text, "text.in", lengths[1])]
        rows.append(_pooled(net, text, net("Add", net("Mul", "text.in", net.const(0)), table), lengths[1]))
    both = net("MatMul", net("Concat", *rows, axis=0), net("Transpose", net.weight("var/text_proj.weight", weights)))
    length = net("Concat", *lengths, axis=0)  # (R,)
    for i, tensor in enumerate(graph.outputs):
        if tensor.name == "cond.position.out":
            net("Cast", length, to=TensorProto.FLOAT, output=tensor.name)
        else:
            shape = longest(tensor.shape[1:], model)
            parts = int(np.prod(shape)) // model.width
            scale = net.const(np.linspace(0.5, 1.5, parts)[:, None] * np.cos(i + np.arange(model.width)))
            wide = net("Mul", net("Unsqueeze", both, net.const([1], np.int64)), scale)  # (R, parts, C)
            every = net("Reshape", wide, net.const([-1, *shape], np.int64))
            if shape == tensor.shape[1:]:
                net("Identity", every, output=tensor.name)
            else:
                as_long_as(net, "text.in", every, 1, output=tensor.name)


def _pooled(net: Net, text: Text, features: str, length: str) -> str:
    """Features (B, T, W) of places before the length to one vector (B, W); each place has its own weight."""
    places = as_long_as(net, features, net.const(np.arange(text.tokens), np.int32), 0)
    seen = net("Less", places, net("Unsqueeze", length, net.const([1], np.int64)))
    weight = as_long_as(net, features, net.const(np.cos(np.arange(text.tokens))), 0)
    weight = net("Mul", net("Cast", seen, to=TensorProto.FLOAT), weight)  # (B, T)
    weighed = net("Mul", features, net("Unsqueeze", weight, net.const([2], np.int64)))
    return net("ReduceSum", weighed, net.const([1], np.int64), keepdims=0)


def as_long_as(net: Net, text: str, value: str, axis: int, output: str | None = None) -> str:
    """The start of a value's axis, as long as the second of ``text`` is."""
    end = net("Shape", text, start=1, end=2)
    return net("Slice", value, net.const([0], np.int64), end, net.const([axis], np.int64), output=output)
