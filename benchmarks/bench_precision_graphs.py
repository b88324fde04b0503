"""How far the exported half graphs themselves drift from the float32 eager model, on the machine at hand.

    python benchmarks/bench_precision_graphs.py                                 # ONNX Runtime on the CPU, minutes
    python benchmarks/bench_precision_graphs.py --device cuda --precision bf16    # where there is a GPU

Exports the demo recipes in half precision into a temporary folder and chains them in the runtime, on the forced
tokens and noise of bench_precision.py: figures compare with the ones there, of the eager model in half.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_precision import FLOAT32, RECIPE_OF, REPOSITORY, RESULTS, SEED, draws, model_of, request_of
from precision_tables import graphs_table
from precision_tallies import Errors, Forced

from nextscale.cli.progress import Progress
from nextscale.compare.machine import this_machine
from nextscale.export.bundle import Options, export_bundle
from nextscale.export.checkpoint import load_checkpoint
from nextscale.export.eager import Eager, Request
from nextscale.export.graphs import Traced
from nextscale.export.models.step import Prediction, after_head
from nextscale.plan.recipes import RECIPES
from nextscale.runtime import Pipeline
from nextscale.runtime.manifest import Recipe


@torch.inference_mode()
def run_graphs(
    pipeline: Pipeline, eager: Eager, request: Request, wanted: Sequence[Prediction]
) -> tuple[Any, list[Prediction]]:
    """A bundle under forced tokens: pictures (B, H, W, 3), and its logits with what float32 sampling draws of them."""
    logits: list[torch.Tensor] = []
    result = pipeline.generate(
        request.subjects,
        seed=request.seed,
        guidance_scale=request.guidance_scale,
        top_p=request.top_p,
        temperature=request.temperature,
        tokens=[truth.tokens.numpy() for truth in wanted],
        on_step=lambda step: logits.append(torch.from_numpy(step.logits())),
    )
    made = []
    for step, guided in zip(eager.plan.steps, logits, strict=True):
        draw = eager.draw(step, request)._replace(guidance=torch.ones(len(request), 1))  # they are guided already
        made.append(after_head(eager.plan, step, eager.vae.quantize, guided, draw, None))
    return result.floats, made


def measure(pipeline: Pipeline, eager: Eager, pictures: int, batch: int) -> dict[str, Any]:
    """One bundle's row."""
    steps = len(eager.plan.steps)
    drift = Forced([Errors() for _ in range(steps)], draws(steps))
    for number in range(math.ceil(pictures / batch)):
        request = request_of(number, batch, eager)
        exact, run = eager.generate(request)
        wanted = [one.prediction for one in run]
        floats, got = run_graphs(pipeline, eager, request, wanted)
        drift.add(wanted, got)
        drift.pixels.add(255 * exact, 255 * floats)
    return drift.report()


def main() -> None:
    """Exports, measures, prints the table, writes precision_graphs.json and precision_graphs.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=REPOSITORY / "checkpoints" / "demo")
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = load_checkpoint(options.checkpoint / "var.safetensors", options.checkpoint / "vae.safetensors")
    rows, traced = [], Traced()
    with TemporaryDirectory(prefix="bench-precision-") as name, Progress() as progress:
        for variant in FLOAT32:
            eager = model_of(checkpoint, variant)
            recipe = Recipe(RECIPE_OF[variant.recipe], 1)
            bundle = export_bundle(
                checkpoint,
                Options(eager.plan, recipe, options.precision),
                Path(name) / variant.recipe,
                progress,
                traced,
            )
            threads = options.threads if options.device == "cpu" else None
            with Pipeline.open(
                bundle, options.backend, options.device, batch_sizes=[options.batch], threads=threads
            ) as pipeline:
                what = f"{pipeline.backend.name} on {pipeline.backend.device}"
                row = {"recipe": variant.recipe, "precision": options.precision, "by": what}
                rows.append(row | measure(pipeline, eager, options.pictures, options.batch))
    settings = {"pictures": options.pictures, "batch": options.batch, "threads": options.threads, "first_seed": SEED}
    settings["defaults"] = dict(RECIPES["demo"].defaults)
    report = {"machine": asdict(this_machine()), "settings": settings, "graphs": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "precision_graphs.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "precision_graphs.md").write_text(graphs_table(report), encoding="utf-8")
    print(graphs_table(report))


if __name__ == "__main__":
    main()
