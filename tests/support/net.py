"""An ONNX graph written by hand, node by node, over constants and weights of a safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper


@dataclass
class Net:
    """A graph under construction: ``net("Add", a, b)`` adds a node and names its result."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def __call__(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant."""
        name = f"c{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str, path: Path) -> str:
        """An initializer that lies in a safetensors file."""
        if name not in {i.name for i in self.initializers}:
            content = path.read_bytes()
            header = int.from_bytes(content[:8], "little")
            entry = json.loads(content[8 : 8 + header])[name]
            start, end = entry["data_offsets"]
            tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=entry["shape"])
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": path.name, "offset": str(8 + header + start), "length": str(end - start)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            self.initializers.append(tensor)
        return name
