"""Prints what the step sessions of a bundle add to this process: anonymous bytes, Pss, and the weights they read."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import onnx

from nextscale.runtime.backends.onnxruntime import OnnxRuntime, Sessions
from nextscale.runtime.backends.packed.machine import this_machine
from nextscale.runtime.backends.packed.target import find
from nextscale.runtime.buffers import Slot, unrolled
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE
from nextscale.runtime.memory import give_back, process_memory


def main(folder: Path, how: str) -> None:
    """Load every step as a pipeline does, run each once for one picture, and measure.

    ``how`` is "" for the bundle's own graphs, "prepack" for copies, "packed" for the target beside the bundle.
    """
    bundle = open_bundle(folder)
    manifest, read = bundle.manifest, set()
    for graph in manifest.steps:
        proto = onnx.load(bundle.path(graph.file), load_external_data=False)
        read |= {i.name for i in proto.graph.initializer if any(e.value == WEIGHTS_FILE for e in i.external_data)}
    backend = OnnxRuntime(threads=1, prepack=how == "prepack")
    (target,) = find(bundle, this_machine(backend.versions()["onnxruntime"])) if how == "packed" else (None,)
    graphs, held = unrolled(manifest.graphs), []
    slot = Slot(graphs, manifest.guidance_rows, Sessions({}, 0, (1,), (0,)), images=1)
    slot.memory.view(0, (slot.layout.size,), "uint8")[...] = 0  # touched, so counted before
    before = process_memory()
    for graph in graphs:
        if graph.step is not None:
            bound = ([slot.bound(t, 1) for t in tensors] for tensors in (graph.inputs, graph.outputs))
            path = target / graph.file if target else bundle.path(graph.file)
            held.append(backend.load(path, graph, packed=target is not None).prepare(*bound))
            held[-1].execute()
    give_back()
    after = process_memory()
    if before and after:
        weights = sum(4 * prod(manifest.weights[name].shape) for name in read)
        sys.stdout.write(f"{after.anonymous - before.anonymous} {after.pss - before.pss} {weights}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), "".join(sys.argv[2:]))
