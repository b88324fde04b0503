"""What exported graphs are made of: names, nodes, weights."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import onnx
import pytest

from nextscale.plugins.onnx_function import scatter_restore_nodes
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE


def _graphs(bundle: Path) -> dict[str, onnx.ModelProto]:
    return {p.stem: onnx.load_model(p, load_external_data=False) for p in sorted(bundle.glob("*.onnx"))}


def _external(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}


@pytest.fixture(params=["tiny_bundle", "tiny_pruned_bundle"])
def bundle(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def test_inputs_and_outputs_are_the_manifests(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    for graph in manifest.graphs:
        proto = onnx.load_model(bundle / graph.file, load_external_data=False).graph
        for tensors, values in ((graph.inputs, proto.input), (graph.outputs, proto.output)):
            assert [t.name for t in tensors] == [v.name for v in values]
            for tensor, value in zip(tensors, values, strict=True):
                dims = value.type.tensor_type.shape.dim
                assert tensor.shape == tuple(d.dim_param or d.dim_value for d in dims), tensor.name


def test_pruned_sub_layers_are_scatter_restore_nodes(bundle: Path) -> None:
    """One node for every pruned sub-layer of the step, no other; each with its plugin attributes."""
    plan = open_bundle(bundle).manifest.plan
    for step in plan.steps:
        model = onnx.load_model(bundle / f"step_{step.order:02d}.onnx", load_external_data=False)
        pruned = [sub for layer in step.layers for sub in layer.sub_layers if sub.kept is not None]
        nodes = scatter_restore_nodes(model)
        assert len(nodes) == len(pruned)
        for node in nodes:
            assert {a.name for a in node.attribute} == {"plugin_namespace", "plugin_version"}
        assert len(model.functions) == bool(pruned)


def test_the_pruned_bundle_prunes(tiny_pruned_bundle: Path) -> None:
    plan = open_bundle(tiny_pruned_bundle).manifest.plan
    assert any(sub.kept for step in plan.steps for layer in step.layers for sub in layer.sub_layers)


def test_no_node_computes_on_weights_alone(bundle: Path) -> None:
    """Such a node is folded by every session into a private copy of the weight."""
    for name, model in _graphs(bundle).items():
        known = {t.name for t in model.graph.initializer}
        weights = set(_external(model))
        for node in model.graph.node:
            inputs = {v for v in node.input if v}
            assert not (inputs and inputs <= known and inputs & weights), f"{name}: {node.op_type} of {inputs}"


def test_every_matrix_is_a_transposed_gemm(bundle: Path) -> None:
    """Linear weights keep their (out, in) shape and meet nothing but Gemm(transB=1); convolutions are decode's."""
    for name, model in _graphs(bundle).items():
        matrices = {n for n, t in _external(model).items() if n.endswith(".weight") and len(t.dims) == 2}
        for node in model.graph.node:
            for matrix in matrices & set(node.input):
                if node.op_type == "Gather":  # embeddings
                    continue
                assert node.op_type == "Gemm", f"{name}: {node.op_type} of {matrix}"
                assert {a.name: a.i for a in node.attribute}["transB"] == 1


def test_a_norm_of_maps_is_one_node_then_gain_then_shift(bundle: Path) -> None:
    """PyTorch's exporter would put a pass over the whole map for a gain of 1, and one for a shift of 0, before them."""
    nodes = onnx.load(bundle / "decode.onnx", load_external_data=False).graph.node
    kinds = Counter(node.op_type for node in nodes)
    gains = [v for node in nodes for v in node.input if v.endswith(".gain")]
    assert kinds["InstanceNormalization"] == len(gains) > 0
    assert kinds["Mul"] == len(gains) + kinds["Sigmoid"] + kinds["Softmax"]  # gains, SiLU's, attention's scale


def test_one_weights_file_serves_every_graph(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    size = (bundle / WEIGHTS_FILE).stat().st_size
    used = set()
    for model in _graphs(bundle).values():
        for name, tensor in _external(model).items():
            where = {entry.key: entry.value for entry in tensor.external_data}
            assert where["location"] == WEIGHTS_FILE
            assert int(where["offset"]) + int(where["length"]) <= size
            assert manifest.weights[name].shape == tuple(tensor.dims)
            used.add(name)
        assert all(t.ByteSize() < 100_000 for t in model.graph.initializer)
    assert used == set(manifest.weights)


def test_weight_table_names_rules_and_sources(bundle: Path) -> None:
    weights = open_bundle(bundle).manifest.weights
    checkpoint_keys = {key for w in weights.values() if w.rule is None for key in w.keys}
    assert {n for n, w in weights.items() if w.rule is None} == checkpoint_keys
    assert weights["derived/var/blocks.0.attn.q_scale"].keys == ("var/blocks.0.attn.scale_mul_1H11",)
    assert weights["derived/var/blocks.1.attn.qkv_bias"].keys == (
        "var/blocks.1.attn.q_bias",
        "var/blocks.1.attn.v_bias",
    )
    assert "exp" in (weights["derived/var/blocks.0.attn.q_scale"].rule or "")


def test_same_steps_of_full_and_pruned_bundles_are_the_same_graphs(tiny_bundle: Path, tiny_pruned_bundle: Path) -> None:
    """A method changes the steps that it changes: those before the restore caches are written stay as they are."""
    full, pruned = _graphs(tiny_bundle), _graphs(tiny_pruned_bundle)
    assert [n.op_type for n in full["step_01"].graph.node] == [n.op_type for n in pruned["step_01"].graph.node]
    assert [n.op_type for n in full["step_03"].graph.node] != [n.op_type for n in pruned["step_03"].graph.node]


def test_no_machine_paths_in_a_bundle(bundle: Path) -> None:
    """Neither graphs nor manifest tell where they were made."""
    for path in bundle.glob("*.onnx"):
        assert b"/home" not in path.read_bytes()
        assert b"site-packages" not in path.read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()
    json.loads((bundle / "manifest.json").read_text())


def test_tapes_are_appended_without_gaps(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    writes: dict[str, list[tuple[int, int]]] = {}
    for graph in manifest.steps:
        for tensor in graph.outputs:
            if tensor.buffer.startswith("tape."):
                length = tensor.shape[0]
                assert isinstance(length, int)
                writes.setdefault(tensor.buffer, []).append((tensor.offset, length))
    assert writes
    for spans in writes.values():
        assert spans[0][0] == 0
        assert all(a + length == b for (a, length), (b, _) in pairwise(spans))
