"""Small bundles of drawn graphs that keep the signatures of a plan: the runtime's tests need no exporter.

The graphs compute nothing of a model. Every input moves the logits, by its own weight, so that a wrong address, a
stale buffer or a swapped tensor changes the tokens; and a picture's rows touch no other picture's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from support.net import Net
from support.prompts import IDS, as_long_as, begin_graph, text_graph, words_tokenizer
from support.prompts import text_plan as plan_of_texts

from nextscale.plan.chain import next_scale_plan
from nextscale.plan.conditioning import longest
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.schedules import tokens
from nextscale.plan.types import Model, Plan, Sampling, Tokenizer
from nextscale.runtime import manifest as manifests
from nextscale.runtime.bundle import hash_file
from nextscale.runtime.manifest import File, Graph, Manifest, Recipe, Source, SourceFile, Tensor, Verified, Weight
from nextscale.runtime.signatures import derive_graphs
from nextscale.runtime.text import TOKENIZER_FILE

MODEL = Model("var", 2, 8, 2, 4, 32, 11, 4, classes=3)
TOKENIZER = Tokenizer(8, (1, 2), 1, 4, 11, stride=2)
SCHEDULE = ((1, 1), (2, 2), (3, 2), (4, 4))
TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


def tiny_plan(pruned: bool = True, smooth: bool = False) -> Plan:
    """Two layers, four scales, one of them not square; the last one pruned from the third's caches."""
    defaults = (("guidance_scale", 1.5), ("top_p", 0.9), ("temperature", 1.0))
    plan = next_scale_plan("tiny", MODEL, TOKENIZER, SCHEDULE, Sampling(0, smooth=smooth), defaults=defaults)
    return FastVAR({-1: 0.5}, cache_scale=2)(plan) if pruned else plan


def text_plan(prefix: bool = False, width: int = 8) -> Plan:
    """The same scales, conditioned on text: attended to, by a bitwise model; or the first step's tokens."""
    return plan_of_texts(SCHEDULE, prefix, width)


def write_bundle(
    folder: Path, plan: Plan | None = None, weights_factor: float = 1.0, text_encoder: bool = True
) -> Path:
    """A bundle of drawn graphs in ``folder``; ``weights_factor`` scales its weights (NaN breaks them).

    A plan that is conditioned on text has a text encoder and its tokenizer too, unless ``text_encoder`` is False.
    """
    plan = plan or tiny_plan()
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    model = plan.models[0][1]
    encodes = model.text is not None and text_encoder

    def draw(*shape: int) -> np.ndarray[Any, Any]:
        return rng.standard_normal(shape).astype(np.float32)

    weights = {} if model.text else {"var/class_emb.weight": draw(model.classes + 1, model.width)}
    weights["var/head.weight"] = draw(model.head_outputs, model.width) * weights_factor
    if model.text:
        weights["var/text_proj.weight"] = draw(model.width, model.text.width)
        weights["var/cfg_uncond"] = draw(model.text.tokens, model.text.width)
    if model.text and encodes:
        weights["text/embed.weight"] = draw(IDS, model.text.width)
        (folder / TOKENIZER_FILE).write_text(words_tokenizer(model.text.tokens), encoding="utf-8")
    save_file(weights, folder / manifests.WEIGHTS_FILE)
    graphs = derive_graphs(plan, text=encodes)
    for graph in graphs:
        onnx.save(_model(plan, graph, folder / manifests.WEIGHTS_FILE), folder / graph.file)
    write_manifest(folder, make_manifest(folder, plan, graphs, weights))
    return folder


def make_manifest(
    folder: Path, plan: Plan, graphs: tuple[Graph, ...], weights: dict[str, np.ndarray[Any, Any]]
) -> Manifest:
    """The manifest of the files that lie in ``folder``."""
    names = sorted(p.name for p in folder.iterdir() if p.name != manifests.FILE_NAME)
    return Manifest(
        name=folder.name,
        recipe=Recipe("tiny", 1),
        precision="fp32",
        plan=plan,
        graphs=graphs,
        files={n: File(hash_file(folder / n), (folder / n).stat().st_size) for n in names},
        weights={k: Weight(manifests.WEIGHTS_FILE, "float32", w.shape, None, (k,)) for k, w in weights.items()},
        versions={"nextscale": "test"},
        source=Source((SourceFile("var", "var.pth", "0" * 64),)),
        verified=(Verified("begin", "drawn for a test", None, None),),
        classes=("circle", "square", "star") if plan.models[0][1].classes else None,
        tokenizer=TOKENIZER_FILE if (folder / TOKENIZER_FILE).is_file() else None,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest as it is."""
    (folder / manifests.FILE_NAME).write_text(manifests.dumps(manifest))


def edit_manifest(folder: Path, edit: Any) -> None:
    """Change the JSON of a manifest in place; ``edit`` gets the dict."""
    path = folder / manifests.FILE_NAME
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def break_output(folder: Path, graph: str, output: str) -> None:
    """Make one output of a graph infinite or NaN everywhere; who reads it within the graph reads it as it was."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"{output}.good" if name == output else name for name in names]
    nodes = [("Sub", [f"{output}.good"] * 2, f"{output}.zero"), ("Div", [f"{output}.good", f"{output}.zero"], output)]
    model.graph.node.extend(helper.make_node(kind, inputs, [name]) for kind, inputs, name in nodes)
    onnx.save(model, path)
    file = {"sha256": hash_file(path), "size": path.stat().st_size}
    edit_manifest(folder, lambda data: data["files"][path.name].update(file))


def _model(plan: Plan, graph: Graph, weights: Path) -> onnx.ModelProto:
    net = Net()
    begin = begin_graph if plan.models[0][1].text else _begin
    make = {"text": text_graph, "begin": begin, "decode": _decode}.get(graph.name, _step)
    make(net, plan, graph, weights)
    proto = helper.make_graph(
        net.nodes, graph.name, [_info(t) for t in graph.inputs], [_info(t) for t in graph.outputs], net.initializers
    )
    return helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _info(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, TYPES[tensor.dtype], list(tensor.shape))


def _begin(net: Net, plan: Plan, graph: Graph, weights: Path) -> None:
    model, table = plan.models[0][1], net.weight("var/class_emb.weight", weights)
    null = net("Add", net("Mul", "labels.in", net.const(0, np.int32)), net.const(model.classes, np.int32))
    both = net("Gather", table, net("Concat", "labels.in", null, axis=0))
    net("Identity", both, output="cond.sos.out")
    wide = net("Unsqueeze", both, net.const([1], np.int64))
    for i, tensor in enumerate(graph.outputs[1:]):
        parts = tensor.shape[1]
        scale = net.const(np.linspace(0.5, 1.5, int(parts))[:, None] * (i + 1))
        net("Mul", wide, scale, output=tensor.name)


def _step(net: Net, plan: Plan, graph: Graph, weights: Path) -> None:
    model, step = plan.models[0][1], plan.steps[graph.step or 0]
    hidden = net.const(np.zeros(model.width))
    for i, tensor in enumerate(t for t in graph.inputs if t.source is None):  # rows: (R, C); tapes: (L, R, H, hd)
        weight = net.const(np.cos(np.arange(model.width) * (i + 1)) * 0.7)
        hidden = net("Add", hidden, net("Mul", _row_vector(net, tensor, model), weight))
    hidden = net("Tanh", hidden, output="hidden")  # (R, C)
    logits = net("Gemm", hidden, net.weight("var/head.weight", weights), transB=1)
    halves = net("Reshape", logits, net.const([2, -1, model.head_outputs], np.int64))  # (2, B, V)
    weighed = net(
        "Mul", net("Transpose", halves, perm=[1, 0, 2]), net("Unsqueeze", "guidance.in", net.const([2], np.int64))
    )
    summed = net("ReduceSum", weighed, net.const([1], np.int64))  # (B, 1, V), keepdims
    places = np.sin(np.arange(step.tokens_out * model.head_outputs).reshape(step.tokens_out, -1))
    net("Add", summed, net.const(places), output="logits.out")
    _sample(net, plan, graph)
    _state(net, plan, graph)
    for tensor in graph.outputs:
        if tensor.name.startswith("tape"):
            rows = net.const(np.arange(int(tensor.shape[0])).reshape(-1, 1, 1, 1) * 0.1)
            split = net("Reshape", hidden, net.const([1, -1, *tensor.shape[2:]], np.int64))
            net("Add", split, rows, output=tensor.name)
        elif tensor.name.startswith("cache"):
            places = net.const(np.arange(int(tensor.shape[1])).reshape(1, -1, 1) * 0.1)
            net("Add", net("Unsqueeze", hidden, net.const([1], np.int64)), places, output=tensor.name)


def _row_vector(net: Net, tensor: Tensor, model: Model) -> str:
    """Anything read from a buffer as (R, C) or (R, 1)."""
    if tensor.name.startswith("tape"):  # order counts: each row of the tape has its own weight
        scale = net.const(np.linspace(1, 2, int(tensor.shape[0])).reshape(-1, 1, 1, 1) / int(tensor.shape[0]))
        summed = net("ReduceSum", net("Mul", tensor.name, scale), net.const([0], np.int64), keepdims=0)
        return net("Reshape", summed, net.const([-1, model.width], np.int64))
    if tensor.name.startswith("state"):
        mean = net("ReduceMean", tensor.name, net.const(list(range(1, len(tensor.shape))), np.int64), keepdims=0)
        column = net("Unsqueeze", mean, net.const([1], np.int64))
        return net("Concat", column, column, axis=0)  # (2B, 1)
    if len(tensor.shape) == 1:  # a position of each row
        return net("Unsqueeze", net("Cast", tensor.name, to=TensorProto.FLOAT), net.const([1], np.int64))
    if len(tensor.shape) == 2:
        return tensor.name
    if len(tensor.shape) == 3:
        return net("ReduceMean", tensor.name, net.const([1], np.int64), keepdims=0)
    parts = longest(tensor.shape[1:], model)  # a text's keys or values: (R, T, H, hd)
    scale = np.cos(np.arange(np.prod(parts))).reshape(parts) / parts[0]
    scale[2:] = 0  # so that a shorter axis is the same text
    weighed = net("Mul", tensor.name, as_long_as(net, tensor.name, net.const(scale), 0))
    summed = net("ReduceSum", weighed, net.const([1, 2, 3], np.int64), keepdims=0)
    return net("Unsqueeze", summed, net.const([1], np.int64))


def _sample(net: Net, plan: Plan, graph: Graph) -> None:
    """Gumbel's argmax from uniforms, for every draw; top_p only shifts a value's logit, enough to be seen."""
    cooled = net("Div", "logits.out", net("Unsqueeze", "temperature.in", net.const([1, 2], np.int64)))
    gumbel = net("Neg", net("Log", net("Neg", net("Log", "noise.in"))))
    if any(t.name == "noise.smooth.in" for t in graph.inputs):
        gumbel = net("Add", gumbel, "noise.smooth.in")
    model = plan.models[0][1]
    vocabulary, axes = model.vocabulary, list(range(1, 3 + len(model.draws)))
    each = net("Add", cooled, gumbel)
    if model.draws:
        each = net("Reshape", each, net.const([0, 0, *model.draws, vocabulary], np.int64))
    shift = net("Mul", net("Unsqueeze", "top_p.in", net.const(axes, np.int64)), net.const(np.arange(vocabulary) * 0.1))
    drawn = net("ArgMax", net("Add", each, shift), axis=-1, keepdims=0)
    drawn = net("Cast", drawn, to=TensorProto.INT32)
    forced = net("Not", net("Less", "tokens.in", net.const(0, np.int32)))
    net("Where", forced, "tokens.in", drawn, output="tokens.out")


def _state(net: Net, plan: Plan, graph: Graph) -> None:
    model, values = plan.models[0][1], net("Cast", "tokens.out", to=TensorProto.FLOAT)
    if model.draws:  # each bit has its own weight
        values = net("ReduceSum", net("Mul", values, net.const(np.arange(1, 1 + model.bits))), net.const([2], np.int64))
        values = net("Squeeze", values, net.const([2], np.int64))
    mean = net("ReduceMean", values, net.const([1], np.int64))  # (B, 1)
    if any(t.name == "noise.diffusion.in" for t in graph.inputs):
        refined = net("ReduceMean", "noise.diffusion.in", net.const([1, 2, 3], np.int64), keepdims=0)
        mean = net("Add", mean, net("Unsqueeze", refined, net.const([1], np.int64)))
    spread = net("Unsqueeze", mean, net.const([2, 3], np.int64))
    channels = plan.tokenizer.code_channels
    field_ = np.sin(np.arange(channels * tokens(plan.code_grid))).reshape(1, -1, *plan.code_grid)
    codes = net("Mul", spread, net.const(field_ * 0.1))
    past = any(t.name == "state.code_sum.in" for t in graph.inputs)
    net("Add" if past else "Identity", *(["state.code_sum.in"] if past else []), codes, output="state.code_sum.out")
    for tensor in graph.outputs:
        if tensor.name == "state.map.out":
            shape = net.const([0, int(tensor.shape[2]), -1], np.int64)
            channels_first = net("Reshape", "state.code_sum.out", shape)
            tokens_first = net("Transpose", channels_first, perm=[0, 2, 1])  # (B, S, Z)
            start, end = net.const([0], np.int64), net.const([tensor.shape[1]], np.int64)
            net("Slice", tokens_first, start, end, net.const([1], np.int64), output=tensor.name)


def _decode(net: Net, plan: Plan, graph: Graph, weights: Path) -> None:
    """Three channels, each code a square of pixels, squeezed into [0, 1]."""
    colours = net("Slice", "state.code_sum.in", *(net.const([v], np.int64) for v in (0, 3, 1)))
    for axis in (2, 3):
        repeats = [1.0, 1.0, 1.0, 1.0]
        repeats[axis] = plan.tokenizer.stride
        colours = net("Resize", colours, "", net.const(repeats), mode="nearest")
    net("Sigmoid", colours, output="image.out")
