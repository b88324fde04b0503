"""Tracing pieces of a model, without weights, into ONNX graphs whose weights are named inputs."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx import helper
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from nextscale.plan.conditioning import TEXT, Shape
from nextscale.runtime.manifest import IMAGES, ROWS

OPSET = 20
# Any number above 1 will do (tracing specialises on 0 and 1) that no other symbol has.
EXAMPLE_IMAGES = 3
EXAMPLE_TEXTS = (5, 4, 2)
POSITIONS = "positions"


@dataclass(frozen=True)
class Symbols:
    """What the symbols in the shapes of a trace stand for.

    ``rows`` are ``guidance_rows`` times ``images``; a ``text`` has up to ``text`` tokens, and its ``positions`` are its
    tokens and ``prefix`` more.
    """

    guidance_rows: int
    text: int = 0
    prefix: int = 0

    def examples(self) -> dict[str, int]:
        """A number for each, to trace with."""
        tokens = next((n for n in EXAMPLE_TEXTS if n <= self.text), 0)
        images = {IMAGES: EXAMPLE_IMAGES, ROWS: EXAMPLE_IMAGES * self.guidance_rows}
        return images | {TEXT: tokens, POSITIONS: self.prefix + tokens}

    def dimensions(self) -> dict[str, Any]:
        """What PyTorch is told of them."""
        images = Dim(IMAGES, min=1, max=4096)
        told = {IMAGES: images, ROWS: self.guidance_rows * images}
        if self.text > 1:
            text = Dim(TEXT, min=1, max=self.text)
            told |= {TEXT: text, POSITIONS: self.prefix + text if self.prefix else text}
        return told

    def told(self, symbol: str, by: str) -> tuple[str, int] | None:
        """The operator and the number that make one symbol of another; None for symbols that have nothing in common."""
        operators = {
            (ROWS, IMAGES): ("Mul", self.guidance_rows),
            (IMAGES, ROWS): ("Div", self.guidance_rows),
            (POSITIONS, TEXT): ("Add", self.prefix),
            (TEXT, POSITIONS): ("Sub", self.prefix),
        }
        return ("Identity", 0) if symbol == by else operators.get((symbol, by))


@dataclass(frozen=True)
class Argument:
    """An input of a piece: its name in the graph, its shape of numbers and symbols, its dtype."""

    name: str
    shape: Shape
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Piece:
    """Something to trace: ``module(*arguments)`` and the names of what it returns."""

    label: str
    module: nn.Module
    arguments: tuple[Argument, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Component:
    """A traced piece. ``weights`` are the inputs that are the module's own parameters and buffers."""

    label: str
    graph: onnx.GraphProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]


@contextmanager
def without_weights() -> Iterator[FakeTensorMode]:
    """Modules made inside hold shapes and dtypes only; they can be traced, not run."""
    with _signals_later(), FakeTensorMode() as mode:
        yield mode


@contextmanager
def _signals_later() -> Iterator[None]:
    """Interrupts wait for the end of this block: PyTorch ends the process where fake tensors' Python code raises.

    ``std::terminate`` skips every clean-up, so an interrupted export would leave its folder behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: caught.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])


class _Together(nn.Module):
    """Several pieces in one trace: most of what a trace takes is the same for one piece as for ten."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(piece.module for piece in pieces)
        self.counts = [len(piece.arguments) for piece in pieces]

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for part, count in zip(self.parts, self.counts, strict=True):
            out = part(*arguments[:count])
            results += out if isinstance(out, tuple) else (out,)
            arguments = arguments[count:]
        return tuple(results)


def trace(pieces: Sequence[Piece], mode: FakeTensorMode, symbols: Symbols) -> list[Component]:
    """Traces all pieces at once; a weight keeps its name in its module's state, derived buffers included."""
    dimensions, sizes = symbols.dimensions(), symbols.examples()
    # Every trace has an input of the images symbol, so that rows can be told as a multiple of it.
    arguments = [Argument("images", (IMAGES,)), *(a for piece in pieces for a in piece.arguments)]
    with mode:
        examples = tuple(
            torch.empty([sizes[d] if isinstance(d, str) else d for d in a.shape], dtype=a.dtype) for a in arguments
        )

    module = _Together([Piece("", nn.Identity(), (arguments[0],), ("",)), *pieces]).eval()
    with _signals_later(), quiet():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # constant folding cannot read weights that are not there
            dynamic_shapes=(
                tuple({i: dimensions[d] for i, d in enumerate(a.shape) if isinstance(d, str)} for a in arguments),
            ),
            input_names=[f"input_{i}" for i in range(len(arguments))],
            verbose=False,
        )
        assert program is not None
        lifted = _lift_weights(program.model, module)
        program.optimize()
    return _apart(ir.to_proto(program.model).graph, pieces, lifted, symbols)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, under each of its names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _lift_weights(model: ir.Model, module: nn.Module) -> dict[str, Tensor]:
    """Turns the initializers that are the modules' tensors into graph inputs; returns them by name."""
    lifted = {name: tensor for name, tensor in _tensors(module) if name in model.graph.initializers}
    for name in lifted:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    return lifted


def _apart(
    graph: onnx.GraphProto, pieces: Sequence[Piece], lifted: dict[str, Tensor], symbols: Symbols
) -> list[Component]:
    """The pieces' own graphs: what their outputs are made from."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    constants = {t.name: t for t in graph.initializer}
    # A weight that leaves the graph as it is was given another name inside.
    lifted = {held: tensor for name, tensor in lifted.items() for held in (name, f"{name}_orig") if held not in makers}
    arguments = (Argument("images", (IMAGES,)), *(a for piece in pieces for a in piece.arguments))
    shapes = {v.name: a.shape for v, a in zip(graph.input, arguments, strict=False)}
    inputs = iter([v.name for v in graph.input[1:]])
    outputs = iter([v.name for v in graph.output[1:]])
    components = []
    for piece in pieces:
        given = {next(inputs): argument.name for argument in piece.arguments}
        made = [_itself(next(outputs), graph, makers, lifted) for _ in piece.outputs]
        own = {name: shapes[name] for name in given}
        reached: set[str] = set()
        todo = list(made)
        while todo:
            if (name := todo.pop()) and name not in reached:
                reached.add(name)
                todo += graph.node[makers[name]].input if name in makers else ()
        part = onnx.GraphProto(
            node=[
                node
                for i in sorted({makers[name] for name in reached & makers.keys()})
                for node in _at_home(graph.node[i], shapes, own, symbols)
            ],
            initializer=[constants[name] for name in sorted(reached & constants.keys())],
            output=[helper.make_empty_tensor_value_info(name) for name in made],
        )
        # Pieces share modules, and the trace has one name for a tensor: what does this piece call it?
        names = {id(tensor): name for name, tensor in _tensors(piece.module)}
        weights = {name: names[id(lifted[name])] for name in sorted(reached & lifted.keys())}
        components.append(_named(piece, part, given, weights))
    return components


def _itself(name: str, graph: onnx.GraphProto, makers: Mapping[str, int], lifted: Mapping[str, Tensor]) -> str:
    """An output, or the weight that it is no more than another name of."""
    node = graph.node[makers[name]] if name in makers else None
    return node.input[0] if node is not None and node.op_type == "Identity" and node.input[0] in lifted else name


def _at_home(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], own: Mapping[str, Shape], symbols: Symbols
) -> list[onnx.NodeProto]:
    """A look at how many pictures, rows or tokens of a text there are, at an argument of the piece itself.

    A trace has one symbol for each, and asks whichever of all pieces' arguments tells it first.
    """
    if node.op_type != "Shape" or node.input[0] in own or node.input[0] not in shapes:
        return [node]
    axes = {a.name: a.i for a in node.attribute}
    asked, out = str(shapes[node.input[0]][axes.get("start", 0)]), node.output[0]
    name, axis, symbol, (operator, number) = next(
        (name, axis, symbol, told)
        for name, shape in own.items()
        for axis, symbol in enumerate(shape)
        if isinstance(symbol, str) and (told := symbols.told(asked, symbol))
    )
    if symbol == asked:
        return [helper.make_node("Shape", [name], [out], node.name, start=axis, end=axis + 1)]
    looked, constant = f"{out}_{symbol}", f"{out}_number"
    return [
        helper.make_node("Shape", [name], [looked], node.name, start=axis, end=axis + 1),
        helper.make_node("Constant", [], [constant], f"{node.name}_number", value_ints=[number]),
        helper.make_node(operator, [looked, constant], [out], f"{node.name}_{asked}"),
    ]


def _named(piece: Piece, part: onnx.GraphProto, given: dict[str, str], weights: dict[str, str]) -> Component:
    """The piece's graph with its arguments, weights and outputs under their own names."""
    names = given | weights
    for wanted, output in zip(piece.outputs, part.output, strict=True):
        names.setdefault(output.name, wanted)
    for node in part.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    for output in part.output:
        output.name = names[output.name]
    return Component(piece.label, part, tuple(given.values()), piece.outputs, tuple(weights.values()))


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter's notes on its own progress and on packages that are not needed stay out of ours."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
