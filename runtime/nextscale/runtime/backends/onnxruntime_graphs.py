"""Graphs as ONNX Runtime's CUDA provider takes them: weights as inputs, and no node that it has no kernel for.

A node without a kernel would run on the CPU, between two copies and a wait. The provider's kernels are listed in
``docs/OperatorKernels.md`` of its repository; at the operator set of our graphs it lacks a minimum (a kernel is for one
version of an operator, and this one's ends before), and convolution and resizing in bfloat16.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.runtime.backends.tensorrt.lift import lift_weights

if TYPE_CHECKING:
    import onnx

# Operators that do not compute in bfloat16 there, and how many of their first inputs are data.
_WIDENED = {"Conv": 3, "Resize": 1}


def cuda_graph(path: Path) -> onnx.ModelProto:
    """A graph of a bundle, lifted, with every node one that the provider runs; inputs and outputs stay as they are."""
    model = lift_weights(path)
    nodes: list[onnx.NodeProto] = []
    types = _types(model)
    for node in model.graph.node:
        if node.op_type == "ReduceMin" and not node.domain:
            nodes += _minimum(node, model)
        elif node.op_type in _WIDENED and not node.domain and _is_bfloat16(node, types):
            nodes += _in_float32(node)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _minimum(node: onnx.NodeProto, model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The least value along the last axis, by TopK: the same value, whatever stands there."""
    import numpy as np
    from onnx import helper, numpy_helper
    from onnx.helper import get_attribute_value

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    attributes = {a.name: get_attribute_value(a) for a in node.attribute}
    axes = numpy_helper.to_array(constants[node.input[1]]).tolist() if len(node.input) > 1 else None
    if axes != [-1] or attributes.get("keepdims", 1) != 1:
        return [node]  # no graph of ours; where CUDA has no kernel for it, opening says so
    one = f"{node.output[0]}/one"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), one))
    outputs = [node.output[0], f"{node.output[0]}/place"]
    return [helper.make_node("TopK", [node.input[0], one], outputs, node.name, axis=-1, largest=0, sorted=1)]


def _in_float32(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The node between casts; what it gives is rounded to bfloat16 once, as a kernel with wide sums would."""
    from onnx import NodeProto, TensorProto, helper

    casts, wide = [], NodeProto()
    wide.CopyFrom(node)
    for i, name in enumerate(node.input[: _WIDENED[node.op_type]]):
        if name:
            wide.input[i] = f"{node.output[0]}/wide.{i}"
            casts.append(helper.make_node("Cast", [name], [wide.input[i]], to=TensorProto.FLOAT))
    wide.output[0] = f"{node.output[0]}/wide"
    return [*casts, wide, helper.make_node("Cast", [wide.output[0]], [node.output[0]], to=TensorProto.BFLOAT16)]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types by name, as far as they follow from the inputs."""
    from onnx import shape_inference

    graph = shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return {**types, **{tensor.name: tensor.data_type for tensor in graph.initializer}}


def _is_bfloat16(node: onnx.NodeProto, types: dict[str, int]) -> bool:
    from onnx import TensorProto

    names = [*node.input[: _WIDENED[node.op_type]], *node.output]
    return any(types.get(name) == TensorProto.BFLOAT16 for name in names if name)
