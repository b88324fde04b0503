"""The function body, run by ONNX Runtime on a model of one node, is the reference."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from support.restore_cases import Case, Inputs, between_two_halves, cases, tolerance
from torch import Tensor

from nextscale.plugins.onnx_function import attach, scatter_restore_function, scatter_restore_nodes
from nextscale.plugins.scatter_restore import scatter_restore, scatter_restore_reference
from nextscale.plugins.signature import DOMAIN, INPUTS, NAME, PLUGIN_ATTRIBUTES, ScatterRestoreError

ONNX_TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
}
SYMBOLS = (("rows", "m", "C"), ("rows", "m"), ("rows", "nc", "C"), ("rows", "n", "C"), ("h", "hc"), ("w", "wc"))
STATIC = (("rows", 7, 8), ("rows", 7), ("rows", 12, 8), ("rows", 30, 8), (6, 4), (5, 3))
Shapes = tuple[tuple[int | str, ...], ...]


def one_node(dtypes: tuple[torch.dtype, torch.dtype], shapes: Shapes = SYMBOLS, opset: int = 20) -> onnx.ModelProto:
    """A model whose inputs and output are float32, and that casts them to what the node shall see."""
    part, full = (ONNX_TYPES[dtype] for dtype in dtypes)
    types = dict.fromkeys(INPUTS, TensorProto.FLOAT) | {"index": TensorProto.INT32}
    casts = {"kept": part, "cache": part, "residual": full}
    nodes = [helper.make_node("Cast", [name], [f"{name}.cast"], to=to) for name, to in casts.items()]
    seen = [f"{name}.cast" if name in casts else name for name in INPUTS]
    nodes.append(helper.make_node(NAME, seen, ["restored"], "restore", domain=DOMAIN, **PLUGIN_ATTRIBUTES))
    nodes.append(helper.make_node("Cast", ["restored"], ["result"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "one_node",
        [helper.make_tensor_value_info(n, types[n], s) for n, s in zip(INPUTS, shapes, strict=True)],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, shapes[INPUTS.index("residual")])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    attach(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def session(model: onnx.ModelProto, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@cache
def any_size(dtypes: tuple[torch.dtype, torch.dtype]) -> onnxruntime.InferenceSession:
    """All lengths symbolic: one session runs every case."""
    return session(one_node(dtypes))


def feeds(inputs: Inputs) -> dict[str, Any]:
    return {n: (t if n == "index" else t.float()).numpy() for n, t in zip(INPUTS, inputs, strict=True)}


def run(ready: onnxruntime.InferenceSession, inputs: Inputs) -> Tensor:
    return torch.from_numpy(ready.run(None, feeds(inputs))[0])


@settings(deadline=None, max_examples=150)
@given(cases())
def test_body_operator_and_reference_agree(case: Case) -> None:
    inputs = case.inputs()
    expected = scatter_restore_reference(*inputs)
    close = tolerance(expected.dtype)
    torch.testing.assert_close(run(any_size(case.dtypes), inputs), expected.float(), **close)
    torch.testing.assert_close(scatter_restore(*inputs), expected, **close)


def test_body_sums_in_float32() -> None:
    """Run by onnx's reference evaluator: ONNX Runtime's CPU provider runs float16 in float32 and would hide it."""
    inputs, pruned = between_two_halves()
    evaluator = ReferenceEvaluator(one_node((torch.float16, torch.float16)))
    (result,) = evaluator.run(None, feeds(inputs))
    assert (torch.from_numpy(result)[pruned] == 2050).all()


def test_body_takes_bfloat16() -> None:
    dtypes = (torch.bfloat16, torch.bfloat16)
    inputs = Case((6, 5), (4, 3), kept=7, dtypes=dtypes).inputs()
    expected = scatter_restore_reference(*inputs).float()
    torch.testing.assert_close(run(any_size(dtypes), inputs), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_static_tokens_and_symbolic_rows(opset: int) -> None:
    ready = session(one_node((torch.float32, torch.float32), STATIC, opset))
    for rows in (1, 2, 3):
        inputs = Case((6, 5), (4, 3), kept=7, rows=rows, seed=rows).inputs()
        torch.testing.assert_close(run(ready, inputs), scatter_restore_reference(*inputs))


def test_shape_inference_reads_the_grid_from_the_matrices() -> None:
    model = one_node((torch.float32, torch.float32), STATIC)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.value_info}
    assert [d.dim_param or d.dim_value for d in shapes["restored"]] == ["rows", 30, 8]


def test_only_the_rows_are_looked_up_while_it_runs(tmp_path: Path) -> None:
    """Lengths of grids are constants once a session is ready; of Shape nodes those of the index remain."""
    model = one_node((torch.float32, torch.float32), STATIC)
    session(model, optimized=tmp_path / "optimized.onnx")
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert {node.input[0] for node in nodes if node.op_type == "Shape"} == {"index"}


def test_attach_is_in_the_models_opset_and_can_be_repeated() -> None:
    model = one_node((torch.float32, torch.float32), opset=18)
    before = model.SerializeToString()
    attach(model)
    assert model.SerializeToString() == before
    (function,) = model.functions
    assert [(o.domain, o.version) for o in function.opset_import] == [("", 18)]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18), (DOMAIN, 1)]
    assert len(scatter_restore_nodes(model)) == 1


def test_function_declares_the_attributes_that_its_nodes_carry() -> None:
    function = scatter_restore_function(20)
    assert (function.domain, function.name) == (DOMAIN, NAME)
    assert list(function.attribute) == list(PLUGIN_ATTRIBUTES)
    assert list(function.input) == list(INPUTS)


def test_attach_refuses_a_node_that_no_plugin_would_be_found_for() -> None:
    model = one_node((torch.float32, torch.float32))
    del scatter_restore_nodes(model)[0].attribute[:]
    with pytest.raises(ScatterRestoreError, match=r"node 'restore' should have the attributes .*plugin_namespace"):
        attach(model)


def test_attach_refuses_a_model_without_standard_operators() -> None:
    model = one_node((torch.float32, torch.float32))
    del model.opset_import[:]
    with pytest.raises(ScatterRestoreError, match="no standard operators"):
        attach(model)


def test_refuses_an_opset_too_old_for_the_body() -> None:
    with pytest.raises(ScatterRestoreError, match="needs opset 18 or newer, not 17"):
        scatter_restore_function(17)
