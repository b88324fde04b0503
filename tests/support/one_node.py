"""A model of one ScatterRestore node with its function, of fixed lengths."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from nextscale.plugins.onnx_function import attach
from nextscale.plugins.signature import DOMAIN, INPUTS, NAME, PLUGIN_ATTRIBUTES

SHAPES = {
    "kept": (2, 7, 8),
    "index": (2, 7),
    "cache": (2, 12, 8),
    "residual": (2, 30, 8),
    "row_matrix": (6, 4),
    "column_matrix": (5, 3),
}
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def one_node(shapes: Mapping[str, tuple[int, ...]], part: str = "float32", full: str = "float32") -> onnx.ModelProto:
    """Inputs and output are the node's, in its dtypes."""
    types = dict.fromkeys(INPUTS, TensorProto.FLOAT) | {"index": TensorProto.INT32}
    types |= {"kept": TYPES[part], "cache": TYPES[part], "residual": TYPES[full]}
    graph = helper.make_graph(
        [helper.make_node(NAME, list(INPUTS), ["result"], "restore", domain=DOMAIN, **PLUGIN_ATTRIBUTES)],
        "one_node",
        [helper.make_tensor_value_info(name, types[name], shapes[name]) for name in INPUTS],
        [helper.make_tensor_value_info("result", TYPES[full], shapes["residual"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    attach(model)
    onnx.checker.check_model(model)
    return model
