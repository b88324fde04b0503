"""What int8 costs and gains on a CPU: the demo model's accuracy and drift, its weights, and the time of steps.

    python benchmarks/bench_int8.py                               # a quarter of an hour on two cores
    python benchmarks/bench_int8.py --pair engines/d16 engines/d16-int8   # and the steps of these, float32 first

- pictures: the demo recipes in float32 and int8 by the runtime, the same seeds by turns, judged by examples/judge.py;
- graphs: every step of the int8 graphs gets the float32 eager model's tokens as its past, and is compared by its logits
  and its own draws;
- layers: likewise eager PyTorch with one kind of layer alone in integers;
- pair: every graph's time in both bundles, by turns in one process, on their packed targets, and what the rates of
  products that this machine reaches in the same run would allow.
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

import numpy as np
import torch
from bench_precision import REPOSITORY, RESULTS, Variant, draws, model_of, request_of, run_forced
from bench_precision_graphs import measure
from int8_tables import tables
from machine_rates import rates, reached, roofline
from precision_tallies import Errors, Forced

from nextscale.compare.latency import times
from nextscale.compare.machine import OtherWork, this_machine
from nextscale.compare.plain import plain
from nextscale.export.bundle import Options, export_bundle
from nextscale.export.checkpoint import Checkpoint, load_checkpoint
from nextscale.export.graphs import Traced
from nextscale.export.int8 import LAYERS, compute_in_integers, integer_layers
from nextscale.export.models.integers import IntegerWeight
from nextscale.runtime import Pipeline
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE, Recipe

from judge import Judge, bootstrap_mean, load_judge, upper_bound, verdicts  # isort: skip  (found by bench_precision)

Places = dict[tuple[str, str], Path]  # by recipe and precision
SEED = 60_000
RECIPE_OF = {"full": "demo", "fastvar": "demo-fastvar"}
PRECISIONS = ("fp32", "int8")
PARTS = ("pictures", "graphs", "layers", "pair")
# Of no block, so float32 in every bundle; the demo model has one adaLN for all blocks, others one in each.
OUTSIDE = ("head", "word_embed", "shared_ada_lin.1")


def bundles(checkpoint: Checkpoint, recipes: Sequence[str], folder: Path) -> Places:
    """The demo's recipes in both precisions, exported where they are not in ``folder`` yet."""
    traced, found = Traced(), {}
    for what, recipe in ((what, RECIPE_OF[what]) for what in recipes):
        for precision in PRECISIONS:
            out = folder / f"{recipe}-{precision}"
            if not out.exists():
                plan = model_of(checkpoint, Variant(what, "fp32")).plan
                export_bundle(checkpoint, Options(plan, Recipe(recipe, 1), precision), out, lambda *told: None, traced)
            found[what, precision] = out
    return found


def judged(places: Places, judge: Judge, count: int, batch: int, threads: int) -> list[dict[str, Any]]:
    """Pictures 0 to ``count`` of every bundle, by turns batch by batch: accuracy, and what int8 loses of float32's."""
    pipelines = {key: Pipeline.open(place, batch_sizes=[batch], threads=threads) for key, place in places.items()}
    right: dict[tuple[str, str], list[Any]] = {key: [] for key in places}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in places}
    classes = next(iter(pipelines.values())).manifest.plan.model().classes
    for first in range(0, count, batch):
        labels = [i % classes for i in range(first, first + batch)]
        for key, pipeline in pipelines.items():
            result = pipeline.generate(labels, seed=SEED, first_image=first)
            right[key].append(verdicts(judge, np.asarray(result.images))[0] == np.array(labels))
            seconds[key].append(result.seconds)
        print(f"{first + batch} of {count} pictures", flush=True) if first % (25 * batch) == 0 else None
    rows = []
    for what in dict.fromkeys(recipe for recipe, _ in places):
        exact, whole = (np.concatenate(right[what, precision]).astype(float) for precision in PRECISIONS)
        loss = bootstrap_mean(exact - whole)
        rows.append(
            {
                "recipe": what,
                "pictures": len(exact),
                "accuracy": float(whole.mean()),
                "accuracy_fp32": float(exact.mean()),
                "loss": float((exact - whole).mean()),
                "loss_upper_bound": upper_bound(loss),
                "seconds": asdict(times(seconds[what, "int8"])),
                "seconds_fp32": asdict(times(seconds[what, "fp32"])),
                "weights": open_bundle(places[what, "int8"]).manifest.files[WEIGHTS_FILE].size,
                "weights_fp32": open_bundle(places[what, "fp32"]).manifest.files[WEIGHTS_FILE].size,
            }
        )
    return rows


def graphs_drift(
    places: Places, checkpoint: Checkpoint, pictures: int, batch: int, threads: int
) -> list[dict[str, Any]]:
    """The int8 graphs against float32 eager PyTorch, under its tokens."""
    rows = []
    for what in dict.fromkeys(recipe for recipe, _ in places):
        with Pipeline.open(places[what, "int8"], batch_sizes=[batch], threads=threads) as pipeline:
            found = measure(pipeline, model_of(checkpoint, Variant(what, "fp32")), pictures, batch)
        rows.append({"recipe": what} | found)
    return rows


def layers_drift(checkpoint: Checkpoint, pictures: int, batch: int) -> list[dict[str, Any]]:
    """One kind of layer alone in integers, then all that a bundle has, in eager PyTorch; the full recipe."""
    exact = model_of(checkpoint, Variant("full", "fp32"))
    there = {name for name in LAYERS if any(path.endswith(f".{name}") for path in integer_layers(exact.var))}
    models = {}
    for what in (*sorted(there), *OUTSIDE, "all of an int8 bundle"):
        models[what] = model_of(checkpoint, Variant("full", "fp32"))
        if what in OUTSIDE:
            layer = models[what].var.get_submodule(what)
            layer.weight = IntegerWeight.of(layer.get_parameter("weight"))
        else:
            compute_in_integers(models[what].var, (what,) if what in there else LAYERS)
    steps = len(exact.plan.steps)
    drift = {what: Forced([Errors() for _ in range(steps)], draws(steps)) for what in models}
    for number in range(math.ceil(pictures / batch)):
        request = request_of(number, batch, exact, SEED)
        with torch.inference_mode():
            wanted = [one.prediction for one in exact.generate(request)[1]]
            for what, model in models.items():
                got = run_forced(model, request, wanted)
                drift[what].add(wanted, got)
    return [{"layers": what} | one.report() for what, one in drift.items()]


def pair_times(pair: Sequence[Path], runs: int, threads: int) -> dict[str, Any]:
    """Seconds of every graph and of a picture in two bundles of one model, by turns; the first turn does not count."""
    pipelines = {
        name: Pipeline.open(bundle, OnnxRuntime(threads=threads, packed=True, verify="size"), verify="size")
        for name, bundle in zip(PRECISIONS, pair, strict=True)
    }
    seen: dict[str, dict[str, list[float]]] = {name: {} for name in PRECISIONS}
    for turn in range(runs + 1):
        for name in PRECISIONS[:: 1 if turn % 2 else -1]:
            result = pipelines[name].generate([turn], seed=turn)
            parts = dict(result.step_seconds)
            parts |= {"without decode": sum(v for k, v in parts.items() if k != "decode"), "picture": result.seconds}
            for graph, seconds in parts.items() if turn else ():
                seen[name].setdefault(graph, []).append(seconds)
    del pipelines
    manifests = [open_bundle(bundle, verify="size").manifest for bundle in pair]
    plan = manifests[0].plan
    found = rates(plan, threads, integers=True)
    return {
        "recipe": manifests[0].recipe.name,
        "weights": [manifest.files[WEIGHTS_FILE].size for manifest in manifests],
        "graphs": {name: {graph: asdict(times(each)) for graph, each in seen[name].items()} for name in PRECISIONS},
        "rates": found,
        "roofline": {name: roofline(plan, reached(found), precision=name) for name in PRECISIONS},
    }


def main() -> None:
    """Measures the parts, puts them beside those that were measured before, writes int8.json and int8.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=REPOSITORY / "checkpoints" / "demo")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this (default: all but pair)")
    parser.add_argument("--recipe", choices=RECIPE_OF, action="append", help="of the demo, only this")
    parser.add_argument("--work", type=Path, help="keeps the demo's bundles, for another run")
    parser.add_argument("--pictures", type=int, default=2000, help="of each bundle")
    parser.add_argument("--forced", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pair", type=Path, nargs=2, metavar=("FP32", "INT8"), help="bundles whose steps are timed")
    parser.add_argument("--runs", type=int, default=15, help="of the pair")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = {name: getattr(options, name) for name in ("pictures", "forced", "batch", "threads", "runs")}
    there = options.out / "int8.json"
    with TemporaryDirectory(prefix="bench-int8-") as name:
        for part in options.part or [part for part in PARTS if part != "pair" or options.pair]:
            other_work = OtherWork()
            found = _measured(part, options, options.work or Path(name))
            report: dict[str, Any] = json.loads(there.read_text(encoding="utf-8")) if there.exists() else {}
            report[part] = plain({"machine": asdict(this_machine(other_work)), "settings": settings, "found": found})
            options.out.mkdir(parents=True, exist_ok=True)
            there.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            (options.out / "int8.md").write_text(tables(report), encoding="utf-8")
    print((options.out / "int8.md").read_text(encoding="utf-8"))


def _measured(part: str, options: argparse.Namespace, work: Path) -> Any:
    if part == "pair":
        return pair_times(options.pair, options.runs, options.threads)
    checkpoint = load_checkpoint(options.checkpoint / "var.safetensors", options.checkpoint / "vae.safetensors")
    if part == "layers":
        return layers_drift(checkpoint, options.forced, options.batch)
    places = bundles(checkpoint, options.recipe or list(RECIPE_OF), work)
    if part == "graphs":
        return graphs_drift(places, checkpoint, options.forced, options.batch, options.threads)
    judge = load_judge(options.checkpoint / "judge.safetensors")
    return judged(places, judge, options.pictures, options.batch, options.threads)


if __name__ == "__main__":
    main()
