"""Products in integers: the graph's nodes and the eager model's agree, a bundle holds what it should, errors show."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support.families import PRUNED, SMALL, Small
from support.packed import pack
from torch import nn

from nextscale.export.bundle import Options, export_bundle, prepared
from nextscale.export.checkpoint import load_checkpoint
from nextscale.export.compose import Composer
from nextscale.export.int8 import INTEGERS, LAYERS, SCALE, in_integers, integer_layers, part_of
from nextscale.export.models.integers import ACTIVATIONS, WEIGHTS, IntegerWeight, integers, rounded
from nextscale.export.twin import weights_within_a_step
from nextscale.export.verify import verify
from nextscale.plan.errors import ParityError
from nextscale.plan.types import Plan
from nextscale.runtime import Pipeline
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE, Graph, Recipe, Tensor

pytestmark = pytest.mark.timeout(600)  # an export on a machine that is busy with something else


@pytest.fixture(scope="module")
def bundle(
    tiny_checkpoint: tuple[Path, Path], tiny_traced: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The pruned tiny bundle in int8. Read only."""
    out = tmp_path_factory.mktemp("int8") / "pruned"
    return tiny.export_tiny(tiny_checkpoint, out, "var-d16-fastvar", tiny_traced, "int8")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def graph_of(weight: torch.Tensor, bias: torch.Tensor | None) -> onnx.ModelProto:
    """One Gemm, turned into its product of integers."""
    outputs, inputs = weight.shape
    sides = (
        (Tensor("x", "float32", ("rows", inputs), "x", 0, "read"),),
        (Tensor("y", "float32", ("rows", outputs), "y", 0, "replace"),),
    )
    composer = Composer(Graph("one", "one.onnx", None, *sides), weights={"var/fc1.weight"})
    names = ["x", "var/fc1.weight", *([] if bias is None else ["bias"])]
    composer.nodes = [onnx.helper.make_node("Gemm", names, ["y"], name="fc1", transB=1)]
    in_integers(composer, {"var/fc1.weight"})
    whole, scale = integers(weight)
    parts = {part_of("var/fc1.weight", INTEGERS): whole.t().contiguous(), part_of("var/fc1.weight", SCALE): scale}
    assert composer.weights == set(parts), "a weight that nothing reads any more is not in the bundle"
    if bias is not None:
        composer.weights.add("bias")
        parts["bias"] = bias
    return composer.model({name: onnx.numpy_helper.from_array(part.numpy(), name) for name, part in parts.items()})


@pytest.mark.parametrize("biased", [True, False])
def test_the_nodes_compute_what_the_eager_layer_does(biased: bool) -> None:
    weight, bias, x = normal(48, 64), normal(48, seed=1), normal(5, 64, seed=2)
    x[1], x[2, 3] = 0, 1000  # a token of zeros; one large value, which costs its own token alone
    model = graph_of(weight, bias if biased else None)
    onnx.checker.check_model(model)
    (found,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x.numpy()})
    layer = nn.Linear(64, 48, bias=biased)
    layer.weight = IntegerWeight.of(weight)
    if biased:
        layer.bias = nn.Parameter(bias)
    with torch.inference_mode():
        wanted = layer(x).numpy()
    spread = np.abs(wanted).max(axis=1, keepdims=True).clip(1e-3)
    np.testing.assert_allclose(found / spread, wanted / spread, rtol=0, atol=1e-5)
    exact = (x @ weight.t() + (bias if biased else 0)).numpy()
    near = np.sqrt(np.square(found - exact).mean(axis=1)) / exact.std(axis=1).clip(1e-3)
    assert (near[[0, 3, 4]] > 1e-3).all(), "it is in integers"
    assert (near[[0, 3, 4]] < 0.03).all()


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    model = graph_of(normal(48, 64), None)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = normal(4, 64, seed=2).numpy()
    alone = session.run(None, {"x": x[:1]})[0]
    beside = session.run(None, {"x": np.concatenate((x[:1], 50 * x[1:]))})[0]
    np.testing.assert_array_equal(alone[0], beside[0])


def test_no_sum_of_two_products_leaves_16_bits() -> None:
    """What processors without VNNI add them in: an unsigned activation goes up to 255."""
    whole, scale = integers(normal(8, 32))
    assert int(whole.abs().max()) == WEIGHTS
    assert 2 * 255 * WEIGHTS < 2**15
    torch.testing.assert_close(whole * scale[:, None], normal(8, 32), rtol=0, atol=float(scale.max()) / 2 + 1e-6)
    steps = rounded(normal(3, 16)) / normal(3, 16).abs().amax(1, keepdim=True) * ACTIVATIONS
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)


def test_layers_of_blocks_are_integers_and_all_else_float32(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.precision == "int8"
    whole = {name: weight for name, weight in manifest.weights.items() if weight.dtype == "int8"}
    kinds = {name.removesuffix(f".{INTEGERS}").rpartition("blocks.1.")[2] for name in whole if "blocks.1." in name}
    assert kinds == {"attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2", "ada_lin.1"}
    for name, weight in whole.items():
        key = name.removeprefix("derived/").removesuffix(f".{INTEGERS}") + ".weight"
        assert weight.keys == (key,)
        assert weight.rule is not None
        assert key not in manifest.weights, "its float32 is not in the bundle too"
        assert manifest.weights[part_of(key, SCALE)].shape == weight.shape[1:]
    assert {tensor.dtype for graph in manifest.graphs for tensor in (*graph.inputs, *graph.outputs)} == {
        "float32",
        "int32",
    }
    assert {f"var/{name}.weight" for name in ("head", "word_embed")} < set(manifest.weights)
    step = onnx.load(bundle / "step_03.onnx", load_external_data=False).graph
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in step.node) == 2 * 4
    assert all(v.tolerance == 0.1 and v.max_error is not None for v in manifest.verified)


def test_it_makes_pictures_that_do_not_depend_on_their_batch(bundle: Path) -> None:
    with Pipeline.open(bundle, batch_sizes=(1, 2)) as pipeline:
        both = pipeline.generate([1, 3], seed=5).floats
        second = pipeline.generate([3], seed=5, first_image=1).floats
    np.testing.assert_allclose(both[1], second[0], rtol=0, atol=1e-6)


def test_a_packed_target_is_bit_for_bit_and_holds_every_weight_once(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "own"))
    (whole,) = {size.size for name, size in open_bundle(copy).manifest.files.items() if name == WEIGHTS_FILE}
    packed = pack(copy).packed
    assert packed.precision == "int8"
    assert packed.weights.size < 3 * whole, "a copy in every graph would be five"
    with (
        Pipeline.open(copy, OnnxRuntime(packed=True)) as shared,
        Pipeline.open(copy, OnnxRuntime(prepack=True)) as own,
    ):
        np.testing.assert_array_equal(shared.generate([1], seed=2).floats, own.generate([1], seed=2).floats)


def change(bundle: Path, folder: Path, name: str, factor: float) -> Path:
    """A copy whose tensor of that name is another one."""
    shutil.copytree(bundle, folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors[name] = tensors[name] * factor
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


SCALES = "derived/var/blocks.1.ffn.fc2.weight_scale"


def test_a_wrong_scale_is_found_in_the_weights_and_in_the_numbers(
    bundle: Path, tiny_checkpoint: tuple[Path, Path], tiny_pruned_bundle: Path, tmp_path: Path
) -> None:
    weights_within_a_step(bundle, tiny_pruned_bundle)
    with pytest.raises(ParityError, match=r"blocks.1.ffn.fc2.weight is not the float32 twin's, nor integers"):
        weights_within_a_step(change(bundle, tmp_path / "near", SCALES, 1.02), tiny_pruned_bundle)
    with pytest.raises(ParityError, match=r"head\.weight is not"):
        weights_within_a_step(change(bundle, tmp_path / "head", "var/head.weight", 1.0001), tiny_pruned_bundle)
    eager = prepared(load_checkpoint(*tiny_checkpoint), open_bundle(bundle).manifest.plan, "int8")
    far = change(bundle, tmp_path / "far", SCALES, 2.0)
    with pytest.raises(ParityError, match="differs from the eager model"):
        verify(far, eager, "int8", lambda *told: None)


@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL.keys())
def test_every_family_is_exported(small: Small, tmp_path: Path) -> None:
    checkpoint = small.load(small.draw(tmp_path))
    plan: Plan = small.plan(checkpoint, PRUNED)
    out = export_bundle(checkpoint, Options(plan, Recipe("small", 1), "int8"), tmp_path / "out", lambda *told: None)
    layers = integer_layers(prepared(checkpoint, plan, "fp32").var)
    found = {name for name, weight in open_bundle(out).manifest.weights.items() if weight.dtype == "int8"}
    assert found == {part_of(f"var/{path}.weight", INTEGERS) for path in layers}
    assert {path.rpartition(".")[2] for path in layers} <= {name.rpartition(".")[2] for name in LAYERS}
    assert len(layers) >= 4 * plan.model().depth
