"""The precision ``int8``: which linear layers compute in integers, and what stands for their Gemm in a graph.

Only ONNX Runtime's CPU kernels run it. All that is not such a product stays float32: norms, attention, scores and
top-k of pruning, tapes, restore caches, sampling. The eager model of the same arithmetic is
:mod:`nextscale.export.models.integers`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor, nn

from nextscale.export.compose import Composer
from nextscale.export.lazy import Lazy
from nextscale.export.models.contract import Derived, Transformer
from nextscale.export.models.integers import ACTIVATIONS, TINY, IntegerWeight, integers
from nextscale.plan.errors import InputError

# Of a block, by the end of their names. What each alone costs the demo model (RMS error of forced logits, in standard
# deviations; docs/precision.md): qkv 0.010, proj 0.022, fc1 0.044, fc2 0.057, which are nearly all products of a step;
# adaLN 0.008, which is a third of VAR's weights and is read once a picture. Float32 stay the head (0.021 for 2 % of the
# products) and word_embed (0.015, and its rows are too short for integers to be any faster).
LAYERS = ("mat_qkv", "qkv_proj", "mat_q", "proj", "fc1", "fc2", "gate_proj", "up_proj", "down_proj", "ada_lin.1")
INTEGERS, SCALE = "weight_int8", "weight_scale"
RULES = {
    INTEGERS: Derived("transpose(round(weight / weight_scale)), (C_in, C_out), -64 to 64", ("weight",)),
    SCALE: Derived("max(abs(weight)) / 64 of each row, (C_out)", ("weight",)),
}
_CONSTANTS: dict[str, NDArray[Any]] = {
    "int8/axis": np.array([1], np.int64),
    "int8/tiny": np.array(TINY, np.float32),
    "int8/step": np.array(1 / ACTIVATIONS, np.float32),
    "int8/zero": np.array(128, np.uint8),
}


def integer_layers(var: Transformer, names: Sequence[str] = LAYERS) -> dict[str, nn.Linear]:
    """The layers of blocks that compute in integers, by their path; raises :class:`InputError` where there is none.

    ``names`` are the ends of their names.
    """
    ends = tuple(f".{name}" for name in names)
    found = {
        f"{var.layer_path(index)}.{path}": module
        for index in range(var.model.depth)
        for path, module in var.layer(index).named_modules()
        if isinstance(module, nn.Linear) and f".{path}".endswith(ends)
    }
    if not found:
        raise InputError(
            f"a model of the family {var.model.family!r} has none of the layers that int8 is made of: export it in fp32"
        )
    return found


def compute_in_integers(var: Transformer, names: Sequence[str] = LAYERS) -> None:
    """Makes an eager model compute as its int8 graphs do; those of its layers alone whose names end so."""
    for layer in integer_layers(var, names).values():
        layer.weight = IntegerWeight.of(layer.weight)


def weight_part(weight: Lazy, part: str) -> Lazy:
    """Of a weight (C_out, C_in) float32 its ``weight_int8`` or its ``weight_scale``, made when it is read."""
    (outputs, inputs), whole = weight.shape, part == INTEGERS

    def make() -> Tensor:
        values, scale = integers(weight.read())
        return values.t() if whole else scale

    return Lazy(torch.Size((inputs, outputs) if whole else (outputs,)), torch.int8 if whole else torch.float32, make)


def in_integers(composer: Composer, names: Collection[str]) -> None:
    """Replaces every Gemm of a graph whose weight is one of ``names``, the bundle's."""
    nodes: list[NodeProto] = []
    for node in composer.nodes:
        if node.op_type != "Gemm" or node.input[1] not in names:
            nodes.append(node)
            continue
        nodes += _product(node)
        composer.weights |= {part_of(node.input[1], part) for part in RULES}
        composer.weights.discard(node.input[1])
        composer.constants |= {name: numpy_helper.from_array(value, name) for name, value in _CONSTANTS.items()}
    composer.nodes = nodes


def part_of(weight: str, part: str) -> str:
    """The bundle's name of a part of a weight, of the weight's."""
    return f"derived/{weight.removesuffix('weight')}{part}"


def _product(gemm: NodeProto) -> list[NodeProto]:
    """``x (n, C_in)`` times a weight: what each row spans, its integers, their product times all scales, the bias.

    The fused operator that finds one scale for all of x takes up to two fifths less time, and would tie a picture to
    its batch.
    """
    (x, weight, *bias), (out,), at = gemm.input, gemm.output, gemm.name or gemm.output[0]

    def name(what: str) -> str:
        return f"{at}/{what}"

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **attributes)

    product = [name("integers"), part_of(weight, INTEGERS), "int8/step", part_of(weight, SCALE), "int8/zero"]
    scaled = name("scaled") if bias else out
    nodes = [
        node("ReduceMax", [x, "int8/axis"], name("highest"), keepdims=1),
        node("ReduceMin", [x, "int8/axis"], name("lowest"), keepdims=1),
        node("Neg", [name("lowest")], name("depth")),
        node("Max", [name("highest"), name("depth"), "int8/tiny"], name("largest")),
        node("Div", [x, name("largest")], name("share")),
        node("QuantizeLinear", [name("share"), "int8/step", "int8/zero"], name("integers")),
        node("MatMulIntegerToFloat", product, name("product"), domain="com.microsoft"),
        node("Mul", [name("product"), name("largest")], scaled),
    ]
    return [*nodes, node("Add", [scaled, *bias], out)] if bias else nodes
