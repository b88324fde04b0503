"""Prints what the step sessions of a bundle add to this process: anonymous bytes, Pss, and the weights they read."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import onnx

from nextscale.runtime.backends.onnxruntime import OnnxRuntime, Sessions
from nextscale.runtime.buffers import Slot, unrolled
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE
from nextscale.runtime.memory import process_memory


def main(folder: Path, prepack: bool) -> None:
    """Load every step as a pipeline does, run each once for one picture, and measure."""
    bundle = open_bundle(folder)
    manifest, read = bundle.manifest, set()
    for graph in manifest.steps:
        proto = onnx.load(bundle.path(graph.file), load_external_data=False)
        read |= {i.name for i in proto.graph.initializer if any(e.value == WEIGHTS_FILE for e in i.external_data)}
    backend = OnnxRuntime(threads=1, prepack=prepack)
    graphs, held = unrolled(manifest.graphs), []
    slot = Slot(graphs, manifest.guidance_rows, Sessions({}, 0, (1,)), images=1)
    slot.memory.view(0, (slot.layout.size,), "uint8")[...] = 0  # touched, so counted before
    before = process_memory()
    for graph in graphs:
        if graph.step is not None:
            bound = ([slot.bound(t, 1) for t in tensors] for tensors in (graph.inputs, graph.outputs))
            held.append(backend.load(bundle.path(graph.file), graph).prepare(*bound))
            held[-1].execute()
    after = process_memory()
    if before and after:
        weights = sum(4 * prod(manifest.weights[name].shape) for name in read)
        sys.stdout.write(f"{after.anonymous - before.anonymous} {after.pss - before.pss} {weights}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["prepack"])
