"""Graphs for ONNX Runtime's CUDA provider: every node has a kernel there, and computes what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, defs, helper, inliner, numpy_helper, shape_inference
from support.tiny import export_tiny

from nextscale.runtime.backends.onnxruntime_graphs import cuda_graph
from nextscale.runtime.backends.tensorrt.lift import external_weights, read_graph
from nextscale.runtime.bundle import open_bundle

HALVES = ("float16", "bfloat16")
FLOAT, BOTH = ("float",), ("float", *HALVES)
# From docs/OperatorKernels.md of ONNX Runtime, the CUDA provider's section, in 2026: since which version of the
# operator, and for which types of the first input. A kernel is for one version: the last that is not newer than ours.
KERNELS: dict[str, tuple[int, tuple[str, ...]]] = {
    "Add": (14, (*BOTH, "int32", "int64")),
    "ArgMax": (13, ("float", "float16")),
    "Cast": (19, (*BOTH, "int32", "int64", "bool")),
    "Clip": (13, ("float", "float16", "int64")),
    "Concat": (13, (*BOTH, "int32", "int64")),
    "ConstantOfShape": (9, ("int64",)),
    "Conv": (11, ("float", "float16")),
    "CumSum": (14, ("float", "float16", "int32", "int64")),
    "Div": (14, (*BOTH, "int32", "int64")),
    "Exp": (13, BOTH),
    "Expand": (13, (*BOTH, "int32", "int64")),
    "Gather": (13, (*BOTH, "int32", "int64")),
    "GatherElements": (13, (*BOTH, "int32", "int64")),
    "Gelu": (20, BOTH),
    "Gemm": (13, BOTH),
    "GreaterOrEqual": (16, ("float", "float16", "int32", "int64")),
    "Identity": (19, (*BOTH, "int32", "int64")),
    "InstanceNormalization": (6, ("float", "float16")),
    "LayerNormalization": (17, BOTH),
    "Less": (13, ("float", "float16", "int32", "int64")),
    "Log": (13, ("float", "float16")),
    "MatMul": (13, BOTH),
    "Mul": (14, (*BOTH, "int32", "int64")),
    "Neg": (13, (*BOTH, "int32", "int64")),
    "Not": (1, ("bool",)),
    "Or": (7, ("bool",)),
    "Pow": (15, (*BOTH, "int32", "int64")),
    "Range": (11, ("float", "int32", "int64")),
    "ReduceL2": (18, ("float", "float16", "int32")),
    "ReduceLogSumExp": (18, ("float", "float16")),
    "ReduceMean": (18, ("float", "float16", "int32")),
    "ReduceSum": (13, (*BOTH, "int32", "int64")),
    "Reshape": (19, (*BOTH, "int32", "int64")),
    "Resize": (19, ("float", "float16", "int32")),
    "ScatterND": (18, (*BOTH, "int32", "int64")),
    "Shape": (19, (*BOTH, "int32", "int64")),
    "Sigmoid": (13, BOTH),
    "Slice": (13, (*BOTH, "int32", "int64")),
    "Softmax": (13, BOTH),
    "Split": (18, (*BOTH, "int32", "int64")),
    "Squeeze": (13, (*BOTH, "int32", "int64")),
    "Sub": (14, (*BOTH, "int32", "int64")),
    "Tile": (13, (*BOTH, "int32", "int64")),
    "TopK": (11, ("float", "float16", "int32", "int64")),
    "Transpose": (13, (*BOTH, "int32", "int64")),
    "Unsqueeze": (13, (*BOTH, "int32", "int64")),
    "Where": (16, ("bool",)),
    "MultiHeadAttention": (1, BOTH),
}
OPSET = 20
GONE = ("Constant", "CastLike")  # initializers, and casts, before a provider is asked


def typed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The model with its functions inlined, and the types that are known."""
    flat = shape_inference.infer_shapes(inliner.inline_local_functions(model))
    values = (*flat.graph.value_info, *flat.graph.input, *flat.graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {tensor.name: tensor.data_type for tensor in flat.graph.initializer}
    return flat, {name: TensorProto.DataType.Name(kind).lower() for name, kind in types.items() if kind}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow), "bf16"])
def test_every_node_of_an_exported_bundle_has_a_kernel(
    precision: str,
    tiny_checkpoint: tuple[Path, Path],
    tiny_traced: dict[Any, Any],
    tiny_pruned_bundle: Path,
    tmp_path: Path,
) -> None:
    folder = tiny_pruned_bundle
    if precision != "fp32":
        folder = export_tiny(tiny_checkpoint, tmp_path / "half", "var-d16-fastvar", tiny_traced, precision)
    for path in sorted(folder.glob("*.onnx")):
        model = cuda_graph(path)
        onnx.checker.check_model(model)
        flat, types = typed(model)
        assert {o.version for o in flat.opset_import if not o.domain} == {OPSET}
        for node in (node for node in flat.graph.node if node.op_type not in GONE):
            since, kinds = KERNELS[node.op_type]
            where = f"{path.name}: {node.op_type} {node.name}"
            if not node.domain:
                assert defs.get_schema(node.op_type, OPSET).since_version == since, where
            kind = types.get(node.input[0]) if node.input else None
            assert kind is None or kind in kinds, f"{where} of {kind}"


def test_an_exported_bundle_computes_the_very_same(tiny_pruned_bundle: Path) -> None:
    """Its last step, sampling with top-p, on the CPU provider."""
    from safetensors.numpy import load_file

    bundle, weights = open_bundle(tiny_pruned_bundle), load_file(tiny_pruned_bundle / "weights.safetensors")
    graph = bundle.manifest.steps[-1]
    path, rng = bundle.path(graph.file), np.random.default_rng(3)
    given: dict[str, Any] = {}
    for tensor in graph.inputs:
        shape = tensor.concrete(2, bundle.manifest.guidance_rows)
        numbers = np.full(shape, -1) if tensor.dtype == "int32" else rng.uniform(0.1, 0.9, shape)
        given[tensor.name] = numbers.astype(tensor.dtype)
    used = {name: weights[name] for name in external_weights(read_graph(path))}
    options, providers = onnxruntime.SessionOptions(), ["CPUExecutionProvider"]
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", "1")  # constant weights take other kernels, else
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # and other layouts
    names = [tensor.name for tensor in graph.outputs]
    model = cuda_graph(path)
    assert "ReduceMin" in {n.op_type for n in read_graph(path).graph.node} - {n.op_type for n in model.graph.node}
    ours = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    plain = onnxruntime.InferenceSession(path, options, providers=providers)
    assert all(map(np.array_equal, ours.run(names, {**given, **used}), plain.run(names, given)))


def save(folder: Path, nodes: list[onnx.NodeProto], kind: int, shapes: list[list[int]], constants: list[Any]) -> Path:
    """A graph from x (and y) to z, at the operator set of ours."""
    inputs = [helper.make_tensor_value_info(n, kind, s) for n, s in zip("xy", shapes, strict=False)]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("z", kind, None)], constants)
    path = folder / "g.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), path)
    return path


@pytest.mark.parametrize("values", [[[3.0, -1.0, 2.0]], [[np.inf, np.inf, 5.0]], [[np.inf] * 3], [[-0.5, -0.5, 0.0]]])
def test_a_minimum_is_the_same_by_another_operator(tmp_path: Path, values: Any) -> None:
    axes = numpy_helper.from_array(np.array([-1]), "axes")
    node = helper.make_node("ReduceMin", ["x", "axes"], ["z"], keepdims=1)
    model = cuda_graph(save(tmp_path, [node], TensorProto.FLOAT, [[1, 3]], [axes]))
    assert [n.op_type for n in model.graph.node] == ["TopK"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["z"], {"x": np.array(values, np.float32)})
    assert found.tolist() == [[min(values[0])]]


def test_convolution_and_resizing_in_bfloat16_are_computed_in_float32(tmp_path: Path) -> None:
    """No provider of this machine runs bfloat16: the casts are looked at."""
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    nodes = [
        helper.make_node("Conv", ["x", "y"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["c", "", "scales"], ["z"], "resize", mode="nearest"),
    ]
    model = cuda_graph(save(tmp_path, nodes, TensorProto.BFLOAT16, [[1, 2, 4, 4], [3, 2, 3, 3]], [scales]))
    kinds = [(n.op_type, [a.i for a in n.attribute if a.name == "to"]) for n in model.graph.node]
    wide, narrow = ("Cast", [TensorProto.FLOAT]), ("Cast", [TensorProto.BFLOAT16])
    assert kinds == [wide, wide, ("Conv", []), narrow, wide, ("Resize", []), narrow]
    assert typed(model)[1]["c"] == "bfloat16"


def test_other_graphs_stay_as_they_are(tmp_path: Path) -> None:
    axes = numpy_helper.from_array(np.array([0]), "axes")
    nodes = [
        helper.make_node("ReduceMin", ["x", "axes"], ["m"], keepdims=1),
        helper.make_node("Conv", ["m", "y"], ["z"], pads=[1, 1, 1, 1]),
    ]
    path = save(tmp_path, nodes, TensorProto.FLOAT, [[1, 2, 4, 4], [3, 2, 3, 3]], [axes])
    assert list(cuda_graph(path).graph.node) == list(onnx.load(path).graph.node)
