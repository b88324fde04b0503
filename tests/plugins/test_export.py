"""A traced ScatterRestore stays one node through torch's exporter, and runs once its function is attached."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch
from support.restore_cases import Case, Inputs
from torch import Tensor, nn
from torch.export import Dim

from nextscale.plugins.onnx_function import attach, scatter_restore_nodes
from nextscale.plugins.scatter_restore import scatter_restore
from nextscale.plugins.signature import PLUGIN_ATTRIBUTES, ScatterRestoreError

GRID, CACHE_GRID, KEPT, WIDTH = (6, 5), (4, 3), 7, 8


def case(rows: int) -> Inputs:
    return Case(GRID, CACHE_GRID, KEPT, rows, WIDTH, seed=rows).inputs()


class Restore(nn.Module):
    """A pruned sub-layer in little: a choice by score, a layer on the kept tokens, the restore."""

    def __init__(self, row_matrix: Tensor, column_matrix: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("row_matrix", row_matrix)
        self.register_buffer("column_matrix", column_matrix)

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        index = x.square().sum(-1).topk(KEPT, dim=1).indices.sort(dim=1).values
        kept = self.layer(x.gather(1, index.unsqueeze(-1).expand(-1, -1, WIDTH)))
        return scatter_restore(kept, index.int(), cache, x, self.row_matrix, self.column_matrix)


def export(module: nn.Module, *example: Tensor) -> onnx.ModelProto:
    rows = {0: Dim("rows", min=1, max=64)}
    program = torch.onnx.export(
        module.eval(), example, dynamo=True, opset_version=20, dynamic_shapes=(rows, rows), verbose=False
    )
    assert program is not None
    return program.model_proto


def test_node_survives_export_and_runs_for_any_rows() -> None:
    torch.manual_seed(0)
    _, _, cache, residual, rows, columns = case(2)
    module = Restore(rows, columns)
    model = export(module, residual, cache)

    (node,) = scatter_restore_nodes(model)
    assert {a.name: a.s.decode() for a in node.attribute} == PLUGIN_ATTRIBUTES
    (output,) = model.graph.output
    assert [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim] == ["rows", 30, WIDTH]

    attach(model)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for count in (1, 2, 3):
        _, _, cache, residual, _, _ = case(count)
        (found,) = session.run(None, dict(zip(names, (residual.numpy(), cache.numpy()), strict=True)))
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(found), module(residual, cache), rtol=1e-5, atol=1e-5)


def test_export_refuses_what_the_operator_refuses() -> None:
    _, _, cache, residual, rows, columns = case(2)
    with pytest.raises(Exception, match=r"asks for cache .* and got") as refused:
        export(Restore(rows, columns), residual, cache[:, 1:])
    errors: list[BaseException | None] = [refused.value]
    while errors[-1] is not None:
        errors.append(errors[-1].__cause__)
    assert any(isinstance(error, ScatterRestoreError) for error in errors)
