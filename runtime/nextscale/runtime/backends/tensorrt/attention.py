"""The fused attention node in standard operators, for a parser that does not know it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nextscale.runtime.errors import BackendError

if TYPE_CHECKING:
    import onnx

DOMAIN, NAME = "com.microsoft", "MultiHeadAttention"


def attention_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The fused nodes of a graph."""
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, NAME)]


def expand_attention(model: onnx.ModelProto) -> None:
    """Replaces every fused node, in place, by two products around a softmax in float32.

    ``(R, m, C), (R, T, C), (R, T, C) -> (R, m, C)`` with ``num_heads`` and ``scale``: what the exporter writes, and
    nothing else of what the operator may do.
    """
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        fused = (node.domain, node.op_type) == (DOMAIN, NAME)
        nodes.extend(_Plain(model, node).nodes if fused else [node])
    del model.graph.node[:]
    model.graph.node.extend(nodes)


class _Plain:
    """The nodes that stand for one fused node; its constants go into the model."""

    def __init__(self, model: onnx.ModelProto, node: onnx.NodeProto) -> None:
        from onnx import TensorProto, helper

        self._prefix, self.nodes = f"{node.output[0]}/plain", list[Any]()
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if len(node.input) != 3 or set(attributes) != {"num_heads", "scale"}:
            raise BackendError(
                f"the attention node {node.name!r} is none that Nextscale writes, and this parser lacks it"
            )

        def constant(name: str, kind: int, dims: list[int], values: list[Any]) -> str:
            model.graph.initializer.append(helper.make_tensor(f"{self._prefix}/{name}", kind, dims, values))
            return f"{self._prefix}/{name}"

        split = constant("split", TensorProto.INT64, [4], [0, 0, attributes["num_heads"], -1])
        join = constant("join", TensorProto.INT64, [3], [0, 0, -1])
        scale = constant("scale", TensorProto.FLOAT, [], [attributes["scale"]])
        q, k, v = (self._add("Reshape", name, split) for name in node.input)  # (R, m or T, H, hd)
        q = self._add("Mul", q, self._add("CastLike", scale, q))
        q = self._add("Transpose", q, perm=[0, 2, 1, 3])  # (R, H, m, hd)
        k = self._add("Transpose", k, perm=[0, 2, 3, 1])  # (R, H, hd, T)
        v = self._add("Transpose", v, perm=[0, 2, 1, 3])  # (R, H, T, hd)
        scores = self._add("Cast", self._add("MatMul", q, k), to=TensorProto.FLOAT)  # (R, H, m, T)
        weights = self._add("CastLike", self._add("Softmax", scores, axis=-1), v)
        mixed = self._add("Transpose", self._add("MatMul", weights, v), perm=[0, 2, 1, 3])  # (R, m, H, hd)
        self._add("Reshape", mixed, join, result=node.output[0])  # (R, m, C)

    def _add(self, op: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = f"{self._prefix}/{len(self.nodes)}_{op}"
        self.nodes.append(helper.make_node(op, inputs, [result or name], name=name, **attributes))
        return result or name
