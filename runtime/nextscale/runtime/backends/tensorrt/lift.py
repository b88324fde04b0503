"""Weights as inputs: the external initializers of a graph become graph inputs, in memory.

So an engine holds code alone, and the weights of all engines are one arena. Small constants stay inside. Nothing of
the weights file is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from nextscale.runtime.manifest import Tensor

if TYPE_CHECKING:
    import onnx


def read_graph(path: Path) -> onnx.ModelProto:
    """A graph as it is on disk, its external data left there."""
    import onnx

    return onnx.load(path, load_external_data=False)


def lift_weights(path: Path) -> onnx.ModelProto:
    """The graph with every external initializer as an input of the same name, shape and type, behind its own inputs.

    Serialise it with ``SerializeToString()``.
    """
    from onnx import helper

    model = read_graph(path)
    weights = external_weights(model)
    inline = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    del model.graph.initializer[:]
    model.graph.initializer.extend(inline)
    model.graph.input.extend(
        helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)) for name, tensor in weights.items()
    )
    return model


def fix_lengths(model: onnx.ModelProto, tensors: Iterable[Tensor]) -> None:
    """Give symbolic axes of inputs and outputs the numbers that those tensors have there."""
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    for value in (*model.graph.input, *model.graph.output):
        for axis, length in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            if axis.dim_param and isinstance(length, int):
                axis.dim_value = length


def external_weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The external initializers of a graph, by the names that they have in the bundle's weight table."""
    from onnx import TensorProto

    return {t.name: t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
