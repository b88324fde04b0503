"""HART's pieces as ONNX graphs: what they compute, and that none computes on a weight alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from support.drawn import drawn_vae
from support.drawn_hart import MODEL, PRUNE, SCHEDULE, TOKENIZER, chain, drawn_hart
from torch import Tensor, nn

from nextscale.export.components import Begin, BlockStep, Embed, Finish
from nextscale.export.compose import IR_VERSION
from nextscale.export.models.contract import TokenizerModel, Transformer
from nextscale.export.models.hart import HART
from nextscale.export.models.resize import resizes_of
from nextscale.export.models.vqvae import VQVAE
from nextscale.export.trace import OPSET, Argument, Component, Piece, Symbols, trace, without_weights
from nextscale.plugins.onnx_function import attach
from nextscale.runtime.manifest import IMAGES, ROWS

PLAN = PRUNE(chain(smooth=True))
IMAGES_RUN = 2
TYPES = {torch.float32: TensorProto.FLOAT, torch.int32: TensorProto.INT32, torch.int64: TensorProto.INT64}
TABLE = ("rotation.cos", "rotation.sin")


def pieces(var: Transformer, vae: TokenizerModel) -> list[Piece]:
    """What is computed once, the first and a later input, a pruned block, the end of the last step."""
    last, made = PLAN.steps[3], ("sos", "position", "head")
    block = BlockStep(var, var.layer(1), last.layers[1], last.grid, dict.fromkeys(("attn", "ffn"), (2, 2)), (), True)
    past = last.layers[1].past_rows
    text = (Argument("text", (IMAGES, 6, 20)), Argument("text_length", (IMAGES,), torch.int32))
    position = Argument("position", (ROWS,))
    draws = [("guidance", (2,)), ("temperature", ()), ("top_p", ()), ("noise", (25, 48)), ("tokens", (25,))]
    draws += [("noise.smooth", (25, 48)), ("noise.diffusion", (25, 4, 32)), ("code_sum", (32, 5, 5))]
    kinds = {"tokens": torch.int32}
    return [
        Piece("begin", Begin(var, 2, ("text", "text_length"), made), text, tuple(f"{name}.out" for name in made)),
        Piece(
            "first", Embed(var, PLAN.steps[0], ("position",)), (Argument("sos", (ROWS, 6, 64)), position), ("x", *TABLE)
        ),
        Piece(
            "later",
            Embed(var, PLAN.steps[2], ("position",)),
            (Argument("map", (IMAGES, 9, 32)), position),
            ("x", *TABLE),
        ),
        Piece(
            "block",
            block,
            (
                Argument("x.in", (ROWS, 25, 64)),
                *(Argument(f"{name}.in", (ROWS, 25, 1, 16)) for name in TABLE),
                *(Argument(f"{part}.in", (past, ROWS, 4, 16)) for part in ("k", "v")),
                *(Argument(f"{name}.in", (ROWS, 4, 64)) for name in ("attn", "ffn")),
            ),
            ("x.out",),
        ),
        Piece(
            "finish",
            Finish(var, vae, last, PLAN),
            (
                Argument("x", (ROWS, 25, 64)),
                Argument("head", (ROWS, 2, 64)),
                *(Argument(name, (IMAGES, *shape), kinds.get(name, torch.float32)) for name, shape in draws),
            ),
            ("logits", "tokens.out", "code_sum.out"),
        ),
    ]


@dataclass(frozen=True)
class Traced:
    """A piece of the real model and its graph."""

    piece: Piece
    component: Component

    def model(self) -> onnx.ModelProto:
        """The graph with the piece's own weights inside."""
        graph, tensors = self.component.graph, dict(named_tensors(self.piece.module))
        constants = [
            helper.make_tensor(name, TYPES[t.dtype], t.shape, t.detach().numpy().tobytes(), raw=True)
            for name, t in tensors.items()
            if name in self.component.weights
        ]
        inputs = [helper.make_tensor_value_info(a.name, TYPES[a.dtype], a.shape) for a in self.piece.arguments]
        outputs = [helper.make_empty_tensor_value_info(name) for name in self.component.outputs]
        whole = helper.make_graph(graph.node, self.piece.label, inputs, outputs, [*graph.initializer, *constants])
        domains = {node.domain for node in graph.node}
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(d, 1) for d in sorted(domains - {""}))]
        model = helper.make_model(whole, opset_imports=opsets, ir_version=IR_VERSION)
        if "nextscale" in domains:
            attach(model)
        return model

    def arguments(self) -> list[Tensor]:
        """Values for two pictures: uniforms for noise, what a step is given for the rest."""
        generator = torch.Generator().manual_seed(1)
        values = []
        for a in self.piece.arguments:
            shape = [{IMAGES: IMAGES_RUN, ROWS: 2 * IMAGES_RUN}.get(d, d) if isinstance(d, str) else d for d in a.shape]
            if a.dtype == torch.int32:
                values.append(torch.tensor([4, 1] if a.name == "text_length" else -1, dtype=torch.int32).expand(shape))
            elif a.name == "position":
                values.append(torch.tensor([3.0, 0.0, 0.0, 0.0]))
            elif a.name == "guidance":
                values.append(torch.tensor([[3.0, -2.0], [1.0, 0.0]]))
            elif a.name.startswith("noise") or a.name in ("temperature", "top_p"):
                values.append(torch.rand(shape, generator=generator).clamp(1e-3, 0.999))
            else:
                values.append(torch.randn(shape, generator=generator))
        return [value.contiguous() for value in values]


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


@pytest.fixture(scope="module")
def traced() -> list[Traced]:
    with without_weights() as mode:
        var, vae = HART(MODEL, SCHEDULE).fold(), VQVAE(TOKENIZER, len(SCHEDULE), encoder=False).fold()
        for resize in (var.resize, vae.quantize.resize):
            resize.prepare(resizes_of(PLAN))
    components = trace(pieces(var, vae), mode, Symbols(2))
    real_var, real_vae = drawn_hart().fold(), drawn_vae(TOKENIZER).fold()
    for resize in (real_var.resize, real_vae.quantize.resize):
        resize.prepare(resizes_of(PLAN))
    return [Traced(*pair) for pair in zip(pieces(real_var, real_vae), components, strict=True)]


def run(model: onnx.ModelProto, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = dict(zip((value.name for value in model.graph.input), (t.numpy() for t in inputs), strict=True))
    outputs: list[np.ndarray] = session.run(None, feeds)
    return outputs


@pytest.mark.parametrize("label", ["begin", "first", "later", "block", "finish"])
def test_graphs_compute_what_the_eager_model_does(label: str, traced: list[Traced]) -> None:
    one = next(t for t in traced if t.piece.label == label)
    inputs = one.arguments()
    with torch.inference_mode():
        wanted = one.piece.module(*inputs)
    found = run(one.model(), inputs)
    for name, got, want in zip(one.component.outputs, found, wanted, strict=True):
        assert got.shape == tuple(want.shape), name
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4, err_msg=name)


def test_no_node_computes_on_weights_alone(traced: list[Traced]) -> None:
    """Such a node is folded by every session into a private copy of the weight."""
    for one in traced:
        model = one.model()
        known, weights = {t.name for t in model.graph.initializer}, set(one.component.weights)
        for node in model.graph.node:
            inputs = {value for value in node.input if value}
            assert not (inputs and inputs <= known and inputs & weights), f"{one.piece.label}: {node.op_type} {inputs}"


def test_matrices_meet_gemm_alone(traced: list[Traced]) -> None:
    for one in traced:
        matrices = {name for name, t in named_tensors(one.piece.module) if name.endswith(".weight") and t.ndim == 2}
        for node in one.component.graph.node:
            for matrix in matrices & set(node.input):
                assert node.op_type == "Gemm" or matrix.endswith("embedding.weight"), f"{node.op_type} of {matrix}"


def test_embeddings_of_numbers_are_derived(traced: list[Traced]) -> None:
    """Neither the MLPs of levels and steps nor the qkv biases are in a graph: what is made of them is."""
    weights = {label: set(one.component.weights) for one in traced if (label := one.piece.label)}
    everything = set().union(*weights.values())
    assert not [name for name in everything if "lvl_embed" in name or "time_embed." in name or "q_bias" in name]
    assert {"var.level_mlp_00", "var.text_frequency"} <= weights["first"]
    assert {"var.level_mlp_02", "var.grid_frequency"} <= weights["later"]
    assert {f"var.diffloss.net.time_embed_{k:02d}" for k in range(4)} <= weights["finish"]
