"""Holding graphs of half precision against their float32 twin: the same computation but for casts and rounding.

The twin is proved against the eager model tightly. Half precision itself can only be held to its rounding, which is
wider than many mistakes; together they say that a half graph computes what it should.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper
from safetensors import safe_open

from nextscale.export import int8
from nextscale.plan.errors import ParityError
from nextscale.runtime.manifest import WEIGHTS_FILE


def same_but_for_rounding(folder: Path, twin: Path) -> None:
    """Raises :class:`ParityError` naming what the graphs or the weights of ``folder`` have otherwise than ``twin``.

    Casts do not count, nor do Reshapes that another Reshape follows: the optimizer joins two where no cast stands
    between. Constants and weights are the twin's, rounded to their own type.
    """
    for path in sorted(folder.glob("*.onnx")):
        onnx.checker.check_model(path)
        ours, theirs = (onnx.load_model(p, load_external_data=False) for p in (path, twin / path.name))
        bodies = [{f.name: _body(f.input, f.output, f.node, ()) for f in model.functions} for model in (ours, theirs)]
        graphs = [_graph(model.graph) for model in (ours, theirs)]
        if bodies[0].keys() != bodies[1].keys():
            raise ParityError(
                f"{path.name} has the functions {sorted(bodies[0])}, its float32 twin {sorted(bodies[1])}"
            )
        for a, b in ((graphs[0], graphs[1]), *((body, bodies[1][name]) for name, body in bodies[0].items())):
            if found := _difference(a, b):
                raise ParityError(f"{path.name} is not its float32 twin with casts: {found}")
    _same_weights(folder / WEIGHTS_FILE, twin / WEIGHTS_FILE)


def weights_within_a_step(folder: Path, twin: Path) -> None:
    """Raises :class:`ParityError` naming a weight of int8's ``folder`` that is not the float32 twin's.

    One in integers times its scales is within half a step of it, with room for the rounding of float32.
    """
    with safe_open(folder / WEIGHTS_FILE, "pt") as ours, safe_open(twin / WEIGHTS_FILE, "pt") as theirs:
        there = set(ours.keys())
        for name in theirs.keys():  # noqa: SIM118  (a safetensors file is no mapping)
            weight, parts = theirs.get_tensor(name), [int8.part_of(name, part) for part in (int8.INTEGERS, int8.SCALE)]
            if name in there:
                fits = torch.equal(ours.get_tensor(name), weight)
            elif there.issuperset(parts):
                whole, scale = (ours.get_tensor(part) for part in parts)
                step = scale[:, None]
                fits = bool(((whole.t() * step - weight).abs() <= 0.501 * step).all())
            else:
                fits = False
            if not fits:
                raise ParityError(f"the weight {name} is not the float32 twin's, nor integers within half a step of it")


def _same_weights(ours: Path, theirs: Path) -> None:
    with safe_open(ours, "pt") as a, safe_open(theirs, "pt") as b:
        if set(a.keys()) != set(b.keys()):
            raise ParityError(f"other weights than the float32 twin's: {sorted(set(a.keys()) ^ set(b.keys()))}")
        for name in a.keys():  # noqa: SIM118  (a safetensors file is no mapping)
            tensor = a.get_tensor(name)
            if not torch.equal(tensor, b.get_tensor(name).to(tensor.dtype)):
                raise ParityError(f"the weight {name} is not the float32 twin's, rounded to {tensor.dtype}")


@dataclass(frozen=True)
class _Op:
    """A node by what it computes from what: inputs are names, constants or (number of the node, output)."""

    kind: str
    inputs: tuple[Any, ...]
    attributes: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class _Body:
    """Nodes that outputs depend on, in order, and what each output is."""

    ops: tuple[_Op, ...]
    outputs: tuple[Any, ...]


def _graph(graph: onnx.GraphProto) -> _Body:
    return _body([i.name for i in graph.input], [o.name for o in graph.output], graph.node, graph.initializer)


def _body(
    inputs: Iterable[str], outputs: Iterable[str], nodes: Iterable[NodeProto], initializers: Iterable[TensorProto]
) -> _Body:
    """A graph without casts, joined Reshapes and names of its own."""
    values: dict[str, Any] = {"": None} | {name: name for name in inputs}
    for tensor in initializers:
        external = tensor.data_location == TensorProto.EXTERNAL
        values[tensor.name] = tensor.name if external else numpy_helper.to_array(tensor)
    ops: list[_Op] = []
    for node in nodes:
        attributes = tuple((a.name, _attribute(a)) for a in sorted(node.attribute, key=lambda a: a.name))
        given = tuple(values[name] for name in node.input)
        if node.op_type == "Cast":
            values[node.output[0]] = given[0]
            continue
        if node.op_type == "Constant":
            values[node.output[0]] = attributes[0][1]
            continue
        if node.op_type == "Reshape" and isinstance(given[0], tuple) and ops[given[0][0]].kind == ".Reshape":
            given = (ops[given[0][0]].inputs[0], *given[1:])
        if node.op_type == "Reshape":
            attributes = ()  # allowzero: no axis is 0, and the optimizer sets it where it joins
        values |= {name: (len(ops), i) for i, name in enumerate(node.output)}
        ops.append(_Op(f"{node.domain}.{node.op_type}", given, attributes))
    ends = [values[name] for name in outputs]
    number = {old: new for new, old in enumerate(sorted(_reached(ops, ends)))}

    def moved(value: Any) -> Any:
        return (number[value[0]], value[1]) if isinstance(value, tuple) else value

    kept = (ops[old] for old in number)
    return _Body(
        tuple(_Op(op.kind, tuple(map(moved, op.inputs)), op.attributes) for op in kept), tuple(map(moved, ends))
    )


def _reached(ops: list[_Op], ends: list[Any]) -> set[int]:
    """The numbers of the nodes that outputs depend on."""
    found: set[int] = set()
    waiting = list(ends)
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple) and value[0] not in found:
            found.add(value[0])
            waiting.extend(ops[value[0]].inputs)
    return found


def _attribute(attribute: AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _difference(ours: _Body, theirs: _Body) -> str | None:
    """The first node or output that is another, in words."""
    for number, (a, b) in enumerate(zip(ours.ops, theirs.ops, strict=False)):
        if a.kind != b.kind:
            return f"node {number} is {a.kind.lstrip('.')}, not {b.kind.lstrip('.')}"
        named: Iterator[tuple[str, Any, Any]] = (
            (f"input {i}", x, y) for i, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=False))
        )
        others: Mapping[str, Any] = dict(b.attributes)
        if len(a.inputs) != len(b.inputs) or dict(a.attributes).keys() != others.keys():
            return f"node {number}, {a.kind.lstrip('.')}, has other inputs or attributes"
        for what, x, y in (*named, *((name, x, others[name]) for name, x in a.attributes)):
            if not _equal(x, y):
                return f"{what} of node {number}, {a.kind.lstrip('.')}, is {x}, not {y}"
    if len(ours.ops) != len(theirs.ops):
        return f"{len(ours.ops)} nodes, not {len(theirs.ops)}"
    return None if ours.outputs == theirs.outputs else f"its outputs are {ours.outputs}, not {theirs.outputs}"


def _equal(ours: Any, theirs: Any) -> bool:
    """Equal, where arrays of floats may be rounded to the type that ``ours`` has."""
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        return ours.shape == theirs.shape and bool(np.array_equal(ours, theirs.astype(ours.dtype), equal_nan=False))
    return type(ours) is type(theirs) and bool(ours == theirs)
