"""Prints the anonymous bytes that six sessions add to this process, each with 64 MB of scratch of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from support.net import Net

from nextscale.runtime.backends.base import Bound
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.manifest import Graph, Tensor
from nextscale.runtime.memory import process_memory

ITEMS, SESSIONS = 8 * 2**20, 6


def main(folder: Path) -> None:
    """Load, run and measure."""
    net = Net()
    large = net("Expand", "x.in", net.const([ITEMS], np.int64))
    net("ReduceMax", net("Cos", large), output="x.out", keepdims=1)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x.in", "x.out")]
    proto = helper.make_graph(net.nodes, "g", infos[:1], infos[1:], net.initializers)
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "g.onnx")
    ends = [Tensor(name, "float32", (1,), "x", 0, "replace") for name in ("x.in", "x.out")]
    graph = Graph("g", "g.onnx", None, (ends[0],), (ends[1],))
    backend, held = OnnxRuntime(threads=1), []
    data = np.ones(2, np.float32)
    bound = [Bound(name, "float32", (1,), data[i:].ctypes.data) for i, name in enumerate(("x.in", "x.out"))]
    before = process_memory()
    for _ in range(SESSIONS):
        held.append(backend.load(folder / graph.file, graph).prepare(bound[:1], bound[1:]))
        held[-1].execute()
    after = process_memory()
    if before and after:
        sys.stdout.write(f"{after.anonymous - before.anonymous}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
