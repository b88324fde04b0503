"""Weights as inputs, in memory."""

from __future__ import annotations

from pathlib import Path

import onnx

from nextscale.runtime.backends.tensorrt.lift import external_weights, lift_weights, read_graph
from nextscale.runtime.bundle import open_bundle


def test_external_initializers_become_inputs_behind_the_graphs_own(bundle: Path) -> None:
    opened = open_bundle(bundle)
    for graph in opened.manifest.graphs:
        path = opened.path(graph.file)
        before, after = read_graph(path), lift_weights(path)
        weights = external_weights(before)
        own = [value.name for value in before.graph.input]
        assert [value.name for value in after.graph.input] == [*own, *weights]
        assert set(weights) <= set(opened.manifest.weights)
        assert not external_weights(after)
        inside = [t.name for t in before.graph.initializer if t.name not in weights]
        assert [t.name for t in after.graph.initializer] == inside
        assert after.graph.node == before.graph.node
        onnx.checker.check_model(after)


def test_shapes_and_types_are_the_weights_own(bundle: Path) -> None:
    opened = open_bundle(bundle)
    lifted = lift_weights(opened.path("begin.onnx"))
    (value,) = (v for v in lifted.graph.input if v.name == "var/class_emb.weight")
    kind = value.type.tensor_type
    assert tuple(d.dim_value for d in kind.shape.dim) == opened.manifest.weights["var/class_emb.weight"].shape
    assert kind.elem_type == onnx.TensorProto.FLOAT


def test_the_weights_file_is_not_read(own_bundle: Path) -> None:
    (own_bundle / "weights.safetensors").unlink()
    assert "var/class_emb.weight" in {value.name for value in lift_weights(own_bundle / "begin.onnx").graph.input}
