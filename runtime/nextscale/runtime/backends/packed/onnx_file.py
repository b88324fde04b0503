"""ONNX files without the package onnx: of its messages only the fields that say where a weight lies.

What is not described here is kept as it is when a file is written again: protobuf keeps fields that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from nextscale.runtime.errors import BackendError

# Message -> field -> its number, and the message that it holds, None for text. As onnx.proto has them.
_FIELDS: dict[str, dict[str, tuple[int, str | None]]] = {
    "StringStringEntryProto": {"key": (1, None), "value": (2, None)},
    "TensorProto": {"name": (8, None), "external_data": (13, "StringStringEntryProto")},
    "NodeProto": {"input": (1, None), "op_type": (4, None)},
    "GraphProto": {"node": (1, "NodeProto"), "initializer": (5, "TensorProto")},
    "ModelProto": {"graph": (7, "GraphProto")},
}
_SINGLE = {"key", "value", "name", "op_type", "graph"}


def read(path: Path) -> Any:
    """The ``ModelProto`` of a file; raises :class:`BackendError` for one that is none."""
    model = _model()()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise BackendError(f"{path} is not an ONNX file ({error})") from error
    return model


def write(path: Path, model: Any) -> None:
    """The file of a ``ModelProto``; the same message makes the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def external(model: Any) -> Iterator[tuple[Any, dict[str, str]]]:
    """Every initializer whose data lie in another file, with the entries that say where."""
    for tensor in model.graph.initializer:
        if tensor.external_data:
            yield tensor, {entry.key: entry.value for entry in tensor.external_data}


def relocate(tensor: Any, entries: dict[str, str]) -> None:
    """Says anew where the data of an initializer lie."""
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def consumers(model: Any) -> dict[str, frozenset[str]]:
    """Of what kinds the nodes are that read a name."""
    found: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, set()).add(node.op_type)
    return {name: frozenset(kinds) for name, kinds in found.items()}


@cache
def _model() -> Any:
    """The class of ``ModelProto``, in a pool of its own: the package onnx registers these names in the common one."""
    file = descriptor_pb2.FileDescriptorProto(name="weights_of_onnx.proto", package="onnx", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for message, fields in _FIELDS.items():
        made = file.message_type.add(name=message)
        for name, (number, inner) in fields.items():
            label = kinds.LABEL_OPTIONAL if name in _SINGLE else kinds.LABEL_REPEATED
            field = made.field.add(name=name, number=number, label=label)
            field.type = kinds.TYPE_STRING if inner is None else kinds.TYPE_MESSAGE
            if inner is not None:
                field.type_name = f".onnx.{inner}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("onnx.ModelProto"))
