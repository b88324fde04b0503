"""Tracing one component of a model, without its weights, into an ONNX graph whose weights are named inputs."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from nextscale.runtime.manifest import IMAGES, ROWS

OPSET = 20
# Any two numbers above 1 will do: tracing specialises on 0 and 1, and rows must be a multiple of images.
EXAMPLE_IMAGES = 3

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Argument:
    """An input of a component: its name in the graph, its shape with the symbols images and rows, its dtype."""

    name: str
    shape: Shape
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Component:
    """A traced piece of graph. ``weights`` are the inputs that are the module's own parameters and buffers."""

    graph: onnx.GraphProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]


@contextmanager
def without_weights() -> Iterator[FakeTensorMode]:
    """Modules made inside hold shapes and dtypes only; they can be traced, not run."""
    with FakeTensorMode() as mode:
        yield mode


def trace(
    module: nn.Module, mode: FakeTensorMode, arguments: list[Argument], outputs: list[str], guidance_rows: int
) -> Component:
    """Traces ``module(*arguments)``; a weight keeps its name in the module's state, derived buffers included."""
    images = Dim(IMAGES, min=1, max=4096)
    together = any(IMAGES in argument.shape for argument in arguments)
    symbols = {IMAGES: images, ROWS: guidance_rows * images if together else Dim(ROWS, min=1, max=4096)}
    sizes = {IMAGES: EXAMPLE_IMAGES, ROWS: EXAMPLE_IMAGES * guidance_rows}
    with mode:
        examples = tuple(torch.empty([sizes.get(d, d) for d in a.shape], dtype=a.dtype) for a in arguments)  # type: ignore[call-overload]
    dynamic = tuple({i: symbols[d] for i, d in enumerate(a.shape) if isinstance(d, str)} for a in arguments)
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            examples,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,  # constant folding cannot read weights that are not there
            dynamic_shapes=_as_called(module, dynamic),
            input_names=[a.name for a in arguments],
            output_names=outputs,
            verbose=False,
        )
    assert program is not None
    weights = _lift_weights(program.model, module)
    with _quiet():
        program.optimize()
    graph = ir.to_proto(program.model).graph
    return Component(graph, tuple(a.name for a in arguments), tuple(outputs), weights)


def _as_called(module: nn.Module, dynamic: tuple[dict[int, object], ...]) -> tuple[object, ...]:
    """One entry per parameter of ``forward``: what falls to ``*rest`` is one nested entry."""
    named = [p for p in inspect.signature(module.forward).parameters.values() if p.kind is not p.VAR_POSITIONAL]
    return (*dynamic[: len(named)], dynamic[len(named) :]) if len(dynamic) > len(named) else dynamic


def _lift_weights(model: ir.Model, module: nn.Module) -> tuple[str, ...]:
    """Turns the initializers that are the module's tensors into graph inputs."""
    names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    weights = tuple(name for name in model.graph.initializers if name in names)
    for name in weights:
        value = model.graph.initializers.pop(name)
        value.const_value = None
        model.graph.inputs.append(value)
    return weights


@contextmanager
def _quiet() -> Iterator[None]:
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


