"""The one weights file of a bundle, and the references that graphs make into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from onnx import TensorProto

from nextscale.export import safetensors_file
from nextscale.export.lazy import Entry
from nextscale.export.names import rule_of, sources_of
from nextscale.export.safetensors_file import header_of
from nextscale.runtime.manifest import WEIGHTS_FILE, Weight

ONNX_DTYPES = {
    torch.float32: ("float32", TensorProto.FLOAT),
    torch.float16: ("float16", TensorProto.FLOAT16),
    torch.bfloat16: ("bfloat16", TensorProto.BFLOAT16),
    torch.int8: ("int8", TensorProto.INT8),
}


def write_weights(tensors: Mapping[str, Entry], folder: Path) -> dict[str, onnx.TensorProto]:
    """Writes ``weights.safetensors``; returns every tensor as an external initializer of that name.

    Lazy tensors are made one at a time, while they are written. The order in the file follows names, shapes and dtypes
    alone, so two checkpoints of one architecture get the same layout, and the graphs of one serve the other.
    """
    path = folder / WEIGHTS_FILE
    safetensors_file.write(path, tensors)
    path.chmod(0o644)  # whatever its writer's habits: a service runs as another user
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


def weight_table(tensors: Mapping[str, Entry]) -> dict[str, Weight]:
    """The manifest's account of every weight: dtype, shape, and for a derived one its rule and the keys behind it."""
    return {
        name: Weight(WEIGHTS_FILE, ONNX_DTYPES[t.dtype][0], tuple(t.shape), rule_of(name), sources_of(name))
        for name, t in sorted(tensors.items())
    }
