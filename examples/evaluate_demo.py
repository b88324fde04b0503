"""What FastVAR costs the demo model in quality, and what it saves: full and several ratios on the same seeds.

Every variant is exported and run by the runtime; picture ``i`` has class ``i % 16`` and the same noise in all of
them, so losses are paired. Judged by ``judge.py``: class accuracy and Frechet distance to fresh drawn pictures, with
bootstrap intervals. Resumes where it was interrupted.

    python examples/evaluate_demo.py --work /somewhere/outside --out benchmarks/results       # hours on two cores
    python examples/evaluate_demo.py ... --pictures 1000 --variant full --variant fastvar     # a first look
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from demo_world import CLASS_NAMES, FRESH, pictures
from judge import Judge, bootstrap_mean, frechet, interval, load_judge, upper_bound, verdicts
from numpy.typing import NDArray

from nextscale.compare.machine import this_machine
from nextscale.export.bundle import Options, export_bundle
from nextscale.export.checkpoint import Checkpoint, load_checkpoint
from nextscale.export.graphs import Traced
from nextscale.plan.cost import plan_cost
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import RECIPES, plan_for
from nextscale.plan.types import Plan
from nextscale.runtime import Pipeline
from nextscale.runtime.manifest import Recipe

SEED = 20_000
LEVEL = 0.95  # of intervals and of the one-sided bound

# Beside the shipped recipe: how much is pruned at which scales, restored from the scale before these or an earlier one.
METHODS: dict[str, FastVAR] = {
    "last 25 %": FastVAR({-1: 0.25}, -2),
    "last 40 %": FastVAR({-1: 0.4}, -2),
    "last 75 %": FastVAR({-1: 0.75}, -2),
    "last 90 %": FastVAR({-1: 0.9}, -2),
    "last 50 %, caches one scale earlier": FastVAR({-1: 0.5}, -3),
    "last 50 %, from layer 1": FastVAR({-1: 0.5}, -2, (1, -1)),
    "last two 25, 50 %": FastVAR({-2: 0.25, -1: 0.5}, -3),
    "last two 40, 50 %": FastVAR({-2: 0.4, -1: 0.5}, -3),
    "last two 40, 60 %": FastVAR({-2: 0.4, -1: 0.6}, -3),
    "last two 60, 75 %": FastVAR({-2: 0.6, -1: 0.75}, -3),
    "last two 50, 75 %": FastVAR({-2: 0.5, -1: 0.75}, -3),
    "last three 25, 50, 75 %": FastVAR({-3: 0.25, -2: 0.5, -1: 0.75}, -4),
}
VARIANTS = ("full", "fastvar", *METHODS)


@dataclass(frozen=True)
class Seen:
    """What the judge saw of one variant's pictures, and the wall time of each in milliseconds."""

    classes: NDArray[np.int64]  # (N,)
    features: NDArray[np.float64]  # (N, 64)
    psnr: NDArray[np.float64]  # (N,) to the full model's picture, dB
    milliseconds: NDArray[np.float64]  # (N,)


def plan_of(variant: str, checkpoint: Checkpoint) -> Plan:
    """The plan of a variant with this checkpoint's numbers."""
    numbers = (checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)
    full = plan_for(RECIPES["demo"], *numbers)
    if variant in METHODS:
        return METHODS[variant](full)
    return full if variant == "full" else plan_for(RECIPES["demo-fastvar"], *numbers)


def bundles(variants: list[str], checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """The bundles of these variants, exported where they are not there yet."""
    traced = Traced()
    places = {variant: folder / re.sub(r"[^a-z0-9]+", "-", variant).strip("-") for variant in variants}
    for variant, place in places.items():
        if not place.exists():
            options = Options(plan_of(variant, checkpoint), Recipe(f"demo-{place.name}", 1))
            export_bundle(checkpoint, options, place, lambda *_: None, traced)
            print(f"exported {place}", flush=True)
    return places


def draw_and_judge(
    places: dict[str, Path], judge: Judge, count: int, batch: int, folder: Path, threads: int
) -> dict[str, Seen]:
    """Pictures 0 to ``count`` of every variant, by turns batch by batch; what is judged is kept in ``folder``."""
    pipelines = {v: Pipeline.open(place, batch_sizes=[batch], threads=threads) for v, place in places.items()}
    found: dict[str, list[Seen]] = {variant: [] for variant in places}
    for first in range(0, count, batch):
        reference = None
        kept = {
            v: folder / f"{places[v].name}-{p.bundle.digest[:12]}-{batch}-{first:06d}.npz" for v, p in pipelines.items()
        }
        if not all(path.exists() for path in kept.values()):
            for variant, pipeline in pipelines.items():
                labels = [i % len(CLASS_NAMES) for i in range(first, first + batch)]
                result = pipeline.generate(labels, seed=SEED, first_image=first)
                reference = result.floats if reference is None else reference
                error = np.square(result.floats - reference).mean(axis=(1, 2, 3))
                psnr = -10 * np.log10(np.maximum(error, 1e-10))
                taken = np.full(batch, 1e3 * sum(t.seconds for t in result.timings) / batch)
                classes, features = verdicts(judge, np.asarray(result.images))
                np.savez(kept[variant], classes=classes, features=features, psnr=psnr, milliseconds=taken)
        for variant, path in kept.items():
            with np.load(path) as data:
                found[variant].append(Seen(**data))
        if first % (10 * batch) == 0:
            print(f"{first + batch} of {count} pictures", flush=True)
    return {v: Seen(*(np.concatenate(parts) for parts in zip(*map(columns, s), strict=True))) for v, s in found.items()}


def columns(seen: Seen) -> tuple[NDArray[np.generic], ...]:
    """The fields of one part, in order."""
    return seen.classes, seen.features, seen.psnr, seen.milliseconds


def frechet_interval(a: NDArray[np.float64], b: NDArray[np.float64], draws: int = 200) -> tuple[float, float]:
    """Bootstrap interval of a Frechet distance, the pictures of ``a`` resampled."""
    rng = np.random.default_rng(0)
    return interval(np.array([frechet(a[rng.integers(len(a), size=len(a))], b) for _ in range(draws)]), LEVEL)


@dataclass(frozen=True)
class Row:
    """One variant's figures: shares of 1, losses against the full model on the same seeds, PSNR to its pictures."""

    variant: str
    methods: tuple[str, ...]
    pictures: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    accuracy_loss: float
    accuracy_loss_upper_bound: float
    frechet: float
    frechet_interval: tuple[float, float]
    psnr_to_full_median: float | None
    milliseconds: float
    speed_up: float
    flops: float
    flops_share: float

    def __str__(self) -> str:
        """A row of the Markdown table."""
        low, high = (100 * share for share in self.accuracy_interval)
        psnr = "" if self.psnr_to_full_median is None else f"{self.psnr_to_full_median:.1f} dB"
        cells = (
            self.variant,
            f"{100 * self.accuracy:.2f} % ({low:.2f} to {high:.2f})",
            f"{100 * self.accuracy_loss:.2f}, under {100 * self.accuracy_loss_upper_bound:.2f} points",
            f"{self.frechet:.2f} ({self.frechet_interval[0]:.2f} to {self.frechet_interval[1]:.2f})",
            psnr,
            f"{100 * self.flops_share:.0f} %",
            f"{self.milliseconds:.1f} ({self.speed_up:.2f}x)",
        )
        return f"| {' | '.join(cells)} |"


HEADER = (
    "| variant | accuracy (95 %) | loss to full, 95 % bound | Frechet (95 %) | PSNR to full | FLOPs | ms/picture |\n"
    "|---|---|---|---|---|---|---|"
)


def judged(seen: dict[str, Seen], plans: dict[str, Plan], real: NDArray[np.float64]) -> list[Row]:
    """One row of figures for each variant; ``real`` are the features (N, 64) of fresh drawn pictures."""
    full, rows = seen["full"], []
    labels = np.arange(len(full.classes)) % len(CLASS_NAMES)
    all_flops = plan_cost(plans["full"]).total_flops
    for variant, one in seen.items():
        right = (one.classes == labels).astype(float)
        loss = (full.classes == labels) - right
        flops = plan_cost(plans[variant]).total_flops
        row = Row(
            variant=variant,
            methods=plans[variant].methods,
            pictures=len(right),
            accuracy=float(right.mean()),
            accuracy_interval=interval(bootstrap_mean(right), LEVEL),
            accuracy_loss=float(loss.mean()),
            accuracy_loss_upper_bound=upper_bound(bootstrap_mean(loss), LEVEL),
            frechet=frechet(one.features, real),
            frechet_interval=frechet_interval(one.features, real),
            psnr_to_full_median=None if variant == "full" else float(np.median(one.psnr)),
            milliseconds=float(np.median(one.milliseconds)),
            speed_up=float(np.median(full.milliseconds / one.milliseconds)),
            flops=flops,
            flops_share=flops / all_flops,
        )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path(__file__).parents[1] / "checkpoints" / "demo")
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and for resuming")
    parser.add_argument("--out", type=Path, required=True, help="folder of demo_quality.json and demo_quality.md")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="only these (full is always among them)")
    parser.add_argument("--pictures", type=int, default=10_000, help="rounded up to whole batches")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    variants = ["full", *(v for v in options.variant or VARIANTS if v != "full")]
    parts = options.work / "judged"
    parts.mkdir(parents=True, exist_ok=True)

    checkpoint = load_checkpoint(options.checkpoint / "var.safetensors", options.checkpoint / "vae.safetensors")
    plans = {variant: plan_of(variant, checkpoint) for variant in variants}
    judge = load_judge(options.checkpoint / "judge.safetensors")
    places = bundles(variants, checkpoint, options.work / "engines")
    seen = draw_and_judge(places, judge, options.pictures, options.batch, parts, options.threads)
    count = len(seen["full"].classes)
    real, other = (verdicts(judge, pictures(first, count))[1] for first in (FRESH[0], FRESH[0] + 1_000_000))
    rows, floor = judged(seen, plans, real), frechet(other, real)
    note = (
        f"{count} pictures of each variant from the same seeds, judged by examples/judge.py. Frechet distance on its "
        f"64 features to as many fresh drawn pictures, which are {floor:.2f} from as many others. "
        f"ONNX Runtime on the CPU, {options.threads} threads, batches of {options.batch}."
    )
    options.out.mkdir(parents=True, exist_ok=True)
    defaults = dict(plans["full"].defaults)
    report = {
        "machine": asdict(this_machine()),
        "defaults": defaults,
        "real_against_real": floor,
        "variants": [asdict(row) for row in rows],
    }
    (options.out / "demo_quality.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    table = "\n".join((note, "", HEADER, *map(str, rows))) + "\n"
    (options.out / "demo_quality.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
