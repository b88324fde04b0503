"""Putting traced components together into one ONNX graph per step, each component under the names of its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, helper

from nextscale.export.trace import OPSET, Component
from nextscale.plugins.onnx_function import attach
from nextscale.runtime.manifest import Graph, Tensor

IR_VERSION = 10
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
}


@dataclass
class Composer:
    """One graph in the making. Values are named by what is bound to them or, inside a component, by its place."""

    signature: Graph
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    weights: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)  # values that are weights as they are

    def place(
        self, component: Component, key: str, at: str, bound: Mapping[str, str], weights: Mapping[str, str]
    ) -> None:
        """Adds a copy of ``component`` at ``at``.

        ``bound`` names its inputs and outputs in this graph, ``weights`` the initializers that its weights are.
        Constants are shared by all copies of a component, under its ``key``.
        """
        names = {**{name: self.aliases.get(value, value) for name, value in bound.items()}, **weights}
        self.weights.update(weights.values())
        for tensor in component.graph.initializer:
            names[tensor.name] = f"{key}/{tensor.name}"
            constant = self.constants.setdefault(names[tensor.name], onnx.TensorProto())
            constant.CopyFrom(tensor)
            constant.name = names[tensor.name]
        for node in component.graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{at}/{node.name}" if node.name else ""
            del copy.metadata_props[:]
            copy.doc_string = ""
            copy.input[:] = [names.get(v, f"{at}/{v}") if v else "" for v in node.input]
            copy.output[:] = [names.get(v, f"{at}/{v}") if v else "" for v in node.output]
            self.nodes.append(copy)
        self._pass_through(component, bound, at, weights)

    def _pass_through(
        self, component: Component, bound: Mapping[str, str], at: str, weights: Mapping[str, str]
    ) -> None:
        """An output that is an input of the component, or leaves it twice, needs a node to carry its other name.

        One that is a weight has the weight's name from here on: a node would copy the weight in every session.
        """
        for wanted, output in zip(component.outputs, component.graph.output, strict=True):
            if output.name in weights:
                self.aliases[bound[wanted]] = weights[output.name]
            elif output.name != wanted:
                source = bound.get(output.name, f"{at}/{output.name}")
                self.nodes.append(helper.make_node("Identity", [source], [bound[wanted]], name=f"{at}/{wanted}"))

    def model(self, external: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
        """The finished model: signature's inputs and outputs, constants inside, weights as external initializers."""
        graph = helper.make_graph(
            self.nodes,
            self.signature.name,
            [_value_info(t) for t in self.signature.inputs],
            [_value_info(t) for t in self.signature.outputs],
            [*self.constants.values(), *(external[name] for name in sorted(self.weights))],
        )
        domains = {node.domain for node in self.nodes}
        opsets = [helper.make_opsetid("", OPSET)]
        opsets += [helper.make_opsetid(domain, 1) for domain in sorted(domains - {""})]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="nextscale")
        if "nextscale" in domains:
            attach(model)
        return model


def _value_info(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, ONNX_TYPES[tensor.dtype], list(tensor.shape))
