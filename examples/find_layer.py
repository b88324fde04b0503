"""Which layer of which step a graph gets wrong: every block's residual stream beside eager PyTorch's.

    python examples/find_layer.py --recipe var-d16-fastvar --model var_d16.pth --vae vae_ch160v4096z32.pth

For when an export or a comparison says that numbers differ; docs/parity.md says how to read the table. Writes the
graphs into a temporary folder, gives each the eager model's own inputs, and looks inside: the first line beyond the
tolerance names the place, what comes after it only carries the error on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from nextscale.export.bundle import Options, prepared, write_graphs
from nextscale.export.checkpoint import load_checkpoint
from nextscale.export.eager import Eager, Request, State
from nextscale.export.models.contract import Conditions
from nextscale.export.models.step import Draw
from nextscale.export.verify import TOLERANCES
from nextscale.plan.recipes import plan_for, recipe
from nextscale.runtime.manifest import Graph, Recipe
from nextscale.runtime.signatures import cache_buffer, derive_graphs, tape_buffer


class Place(NamedTuple):
    """The largest error at one place of a graph, in units of max(1, standard deviation of the eager values)."""

    graph: str
    value: str
    error: float


def find(folder: Path, eager: Eager, precision: str, request: Request) -> Iterator[Place]:
    """Every block, then logits and code sum, of every step graph in ``folder``."""
    with torch.inference_mode():
        cond, state = eager.begin(eager.given(request)), State()
        graphs = {graph.step: graph for graph in derive_graphs(eager.plan, precision)}
        for step in eager.plan.steps:
            draw, wanted = eager.draw(step, request), dict[str, Tensor]()
            values = inputs(eager, cond, state, draw)

            def seen(order: int, layer: int, x: Tensor, wanted: dict[str, Tensor] = wanted) -> None:
                wanted[f"blocks.{layer}/x"] = x

            out = eager.run_step(step, cond, state, draw, seen)
            values["tokens.in"] = out.tokens  # forced, so that one tied draw cannot hide what follows
            wanted |= {"logits.out": out.logits, "state.code_sum.out": out.code_sum}
            graph = graphs[step.order]
            for name, got in run(folder, graph, values, list(wanted)).items():
                expected = wanted[name].float().numpy()
                error = np.abs(got.astype(np.float32) - expected).max() / max(1.0, float(expected.std()))
                yield Place(graph.name, name, float(error))


def inputs(eager: Eager, cond: Conditions, state: State, draw: Draw) -> dict[str, Tensor]:
    """What the eager model is about to read, under the graphs' names."""
    values = {f"cond.{name}.in": made for name, made in cond.items()}
    values |= {"guidance.in": draw.guidance, "top_p.in": draw.top_p, "temperature.in": draw.temperature}
    for name, noise in (("", draw.noise), ("smooth.", draw.smooth_noise), ("diffusion.", draw.diffusion_noise)):
        values |= {} if noise is None else {f"noise.{name}in": noise}
    if state.map is not None and state.code_sum is not None:
        values |= {"state.map.in": state.map, "state.code_sum.in": state.code_sum}
    for tape, rows in state.tapes.items():
        values |= {f"{tape_buffer(eager.plan, tape, part)}.in": r for part, r in zip("kv", rows, strict=True)}
    return values | {f"{cache_buffer(eager.plan, name)}.in": cache for name, cache in state.caches.items()}


def run(folder: Path, graph: Graph, values: dict[str, Tensor], names: list[str]) -> dict[str, NDArray[Any]]:
    """The graph's values of those names, the ones inside it too."""
    model = onnx.load_model(folder / graph.file, load_external_data=False)
    there = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in there
    )
    watched = folder / f"watched-{graph.file}"
    onnx.save_model(model, watched)
    session = onnxruntime.InferenceSession(str(watched), providers=["CPUExecutionProvider"])
    watched.unlink()
    got = session.run(names, {tensor.name: values[tensor.name].numpy() for tensor in graph.inputs})
    return dict(zip(names, got, strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Which layer of which step a graph gets wrong.")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    checkpoint, tolerance = load_checkpoint(asked.model, asked.vae), TOLERANCES[asked.precision]
    plan = plan_for(recipe(asked.recipe), checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)
    with TemporaryDirectory() as name:
        write_graphs(checkpoint, Options(plan, Recipe("", 0), asked.precision), Path(name), lambda *_: None, {})
        eager = prepared(checkpoint, plan, asked.precision)
        for place in find(Path(name), eager, asked.precision, Request([0, 1], seed=asked.seed, top_p=0.9)):
            mark = "" if place.error <= tolerance else f"  beyond {tolerance:.0e}"
            print(f"{place.graph}  {place.value:<20} {place.error:.1e}{mark}", flush=True)


if __name__ == "__main__":
    main()
