"""A graph of half precision is its float32 twin but for casts and rounding, or it is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, NodeProto
from safetensors.torch import load_file, save_file
from support import tiny

from nextscale.export.twin import same_but_for_rounding
from nextscale.plan.errors import ParityError

pytestmark = pytest.mark.timeout(600)  # an export on a machine that is busy with something else


@pytest.fixture(scope="module", params=["fp16", "bf16"])
def half(
    request: pytest.FixtureRequest,
    tiny_checkpoint: tuple[Path, Path],
    tiny_traced: dict[Any, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A pruned bundle in half precision."""
    out = tmp_path_factory.mktemp("half") / request.param
    return tiny.export_tiny(tiny_checkpoint, out, "var-d16-fastvar", tiny_traced, request.param)


def first(model: ModelProto, kind: str) -> NodeProto:
    """The first node of that kind."""
    return next(node for node in model.graph.node if node.op_type == kind)


def swap(model: ModelProto) -> None:
    """Keys for values."""
    inputs = first(model, "MultiHeadAttention").input
    inputs[1], inputs[2] = inputs[2], inputs[1]


def another_attribute(model: ModelProto) -> None:
    """The exact GELU, not that of the tanh."""
    first(model, "Gelu").attribute.pop()


def another_constant(model: ModelProto) -> None:
    """A number in the graph, a tenth off."""
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor) if tensor.data_location != tensor.EXTERNAL else None
        if array is not None and array.dtype.kind == "f" and array.size == 1 and float(array) > 0.01:
            tensor.CopyFrom(onnx.numpy_helper.from_array((array * 1.1).astype(array.dtype), tensor.name))
            return
    raise AssertionError("the graph has no such constant")


def another_operator(model: ModelProto) -> None:
    """A sum where there is a product."""
    first(model, "Mul").op_type = "Add"


def another_output(model: ModelProto) -> None:
    """The keys of the first layer as those of the second."""
    by_name = {output: node for node in model.graph.node for output in node.output}
    one, two = (by_name[f"tape.var.k.0{layer}.out"] for layer in (0, 1))
    two.input[0] = one.input[0]


def test_what_an_export_wrote_is(half: Path, tiny_pruned_bundle: Path) -> None:
    same_but_for_rounding(half, tiny_pruned_bundle)


@pytest.mark.parametrize("change", [swap, another_attribute, another_constant, another_operator, another_output])
def test_another_computation_is_refused(
    half: Path, tiny_pruned_bundle: Path, tmp_path: Path, change: Callable[[ModelProto], None]
) -> None:
    changed = Path(shutil.copytree(half, tmp_path / "changed"))
    model = onnx.load_model(changed / "step_02.onnx", load_external_data=False)
    change(model)
    (changed / "step_02.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ParityError, match=r"step_02\.onnx is not its float32 twin with casts: "):
        same_but_for_rounding(changed, tiny_pruned_bundle)


def test_another_weight_is_refused(half: Path, tiny_pruned_bundle: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(half, tmp_path / "changed"))
    weights = load_file(changed / "weights.safetensors")
    weights["var/blocks.1.ffn.fc2.bias"][3] += 0.05
    save_file(weights, changed / "weights.safetensors")
    with pytest.raises(ParityError, match=r"the weight var/blocks\.1\.ffn\.fc2\.bias is not the float32 twin's"):
        same_but_for_rounding(changed, tiny_pruned_bundle)
