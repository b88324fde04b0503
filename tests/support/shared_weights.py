"""Prints what four sessions over one 64 MB weights file add to this process: anonymous bytes and Pss."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file
from support.bundles import Net

from nextscale.runtime.backends.base import Bound
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.manifest import Graph, Tensor
from nextscale.runtime.memory import process_memory

WIDTH, LAYERS = 1024, 16


def main(folder: Path) -> None:
    """Load, run and measure."""
    weights = {f"w{i}": np.full((WIDTH, WIDTH), 1e-3, np.float32) for i in range(LAYERS)}
    save_file(weights, folder / "weights.safetensors")
    del weights
    backend, graphs = OnnxRuntime(threads=1), []
    for rows in (1, 4, 9, 16):
        net, x = Net(), "x.in"
        for i in range(LAYERS):
            x = net("Gemm", x, net.weight(f"w{i}", folder / "weights.safetensors"), transB=1)
        net("Identity", x, output="x.out")
        infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, WIDTH]) for n in ("x.in", "x.out")]
        proto = helper.make_graph(net.nodes, "g", infos[:1], infos[1:], net.initializers)
        onnx.save(
            helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
            folder / f"{rows}.onnx",
        )
        ends = [Tensor(n, "float32", (rows, WIDTH), "x", 0, "replace") for n in ("x.in", "x.out")]
        graphs.append(Graph(str(rows), f"{rows}.onnx", None, (ends[0],), (ends[1],)))
    before = process_memory()
    data, held = np.ones((2, 16, WIDTH), np.float32), []
    for graph in graphs:
        shape = tuple(int(d) for d in graph.inputs[0].shape)
        ends = [Bound(n, "float32", shape, data[i].ctypes.data) for i, n in enumerate(("x.in", "x.out"))]
        held.append(backend.load(folder / graph.file, graph).prepare(ends[:1], ends[1:]))
        held[-1].execute()
    after = process_memory()
    if before and after:
        sys.stdout.write(f"{after.anonymous - before.anonymous} {after.pss - before.pss}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
