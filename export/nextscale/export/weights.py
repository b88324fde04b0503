"""The one weights file of a bundle, and the references that graphs make into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto
from safetensors.torch import save_file
from torch import Tensor

from nextscale.export.names import rule_of, sources_of
from nextscale.runtime.manifest import WEIGHTS_FILE, Weight

ONNX_DTYPES = {
    torch.float32: ("float32", TensorProto.FLOAT),
    torch.float16: ("float16", TensorProto.FLOAT16),
    torch.bfloat16: ("bfloat16", TensorProto.BFLOAT16),
}


def write_weights(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, onnx.TensorProto]:
    """Writes ``weights.safetensors``; returns every tensor as an external initializer of that name.

    The order in the file follows names, shapes and dtypes alone, so two checkpoints of one architecture get the same
    layout, and the graphs of one serve the other.
    """
    path = folder / WEIGHTS_FILE
    save_file({name: tensors[name] for name in sorted(tensors)}, path)
    path.chmod(0o644)  # the library makes it private to its writer; a service runs as another user
    length, header = header_of(path)
    references = {}
    for name, tensor in tensors.items():
        start, end = header[name]["data_offsets"]
        reference = TensorProto(
            name=name,
            data_type=ONNX_DTYPES[tensor.dtype][1],
            dims=tensor.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", WEIGHTS_FILE), ("offset", 8 + length + start), ("length", end - start)):
            reference.external_data.add(key=key, value=str(value))
        references[name] = reference
    return references


def header_of(path: Path) -> tuple[int, dict[str, Any]]:
    """Length in bytes and content of a safetensors file's header: dtype, shape and offsets of every tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    return length, header


def weight_table(tensors: Mapping[str, Tensor]) -> dict[str, Weight]:
    """The manifest's account of every weight: dtype, shape, and for a derived one its rule and the keys behind it."""
    return {
        name: Weight(WEIGHTS_FILE, ONNX_DTYPES[t.dtype][0], tuple(t.shape), rule_of(name), sources_of(name))
        for name, t in sorted(tensors.items())
    }
