"""Whether pictures show what their sentences say: the text demo in full against FastVAR, attribute by attribute.

A small judge learns to name thing, colour, ground, ground colour and turn of drawn pictures; both bundles draw the same
fresh sentences with the same noise. Accuracies are by attribute, and of whole sentences; losses are paired, with
bootstrap intervals.

    python examples/evaluate_text_demo.py --checkpoint checkpoints/text --work /somewhere/outside --pictures 1000
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from demo_world import FRESH, TRAINING
from judge import FEATURES, Judge, as_tensor, bootstrap_mean, interval
from numpy.typing import NDArray
from sentence_world import ATTRIBUTES, answers, pictures, sentence
from torch import Tensor, nn

from nextscale.compare.machine import this_machine
from nextscale.export.bundle import Options, export_bundle
from nextscale.export.checkpoint import load_checkpoint
from nextscale.export.graphs import Traced
from nextscale.export.text import load_text_encoder
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import plan_for, recipe
from nextscale.runtime import Pipeline
from nextscale.runtime.bundle import hash_file
from nextscale.runtime.manifest import Recipe

SEED, RECIPE = 30_000, "infinity-125m-0.25m"
METHODS = {"full": (), "fastvar": (FastVAR({-1: 0.5}, cache_scale=-2),)}  # the demo's setting
Answers = NDArray[np.int64]  # (pictures, attributes)


class AttributeJudge(nn.Module):
    """Pictures (B, 3, 64, 64) in [0, 1] to logits of every attribute, side by side: (B, sum of ATTRIBUTES)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Judge()
        self.heads = nn.Linear(FEATURES, sum(ATTRIBUTES.values()))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.heads(self.trunk.features(images))
        return logits

    def loss(self, images: Tensor, wanted: Tensor) -> Tensor:
        """The mean cross-entropy of all attributes; ``wanted`` (B, attributes)."""
        parts = self(images).split(list(ATTRIBUTES.values()), dim=1)
        return torch.stack([F.cross_entropy(part, wanted[:, i]) for i, part in enumerate(parts)]).mean()

    @torch.no_grad()
    def answers(self, images: NDArray[np.uint8], batch: int = 500) -> Answers:
        """What it sees in uint8 pictures (N, 64, 64, 3)."""
        parts = [self(as_tensor(images[i : i + batch])) for i in range(0, len(images), batch)]
        split = torch.cat(parts).split(list(ATTRIBUTES.values()), dim=1)
        return np.stack([part.argmax(1).numpy() for part in split], axis=1)


def train_judge(seconds: float, pool: NDArray[np.uint8], truth: Answers, seed: int = 0) -> AttributeJudge:
    """A judge trained on pictures (N, 64, 64, 3) and what they show, for about that long."""
    torch.manual_seed(seed)
    judge, wanted = AttributeJudge(), torch.from_numpy(truth)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    start, step, done = time.monotonic(), 0, 0.0
    while done < 1.0:
        index = torch.randint(len(pool), (128,))
        images = as_tensor(pool[index.numpy()]) + 0.02 * torch.randn(128, 1, 64, 64)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * (1 - done) + 1e-6
        loss = judge.loss(images, wanted[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step, done = step + 1, (time.monotonic() - start) / seconds
    return judge.eval()


def export_all(checkpoint: Path, folder: Path, check: str = "numbers") -> dict[str, Path]:
    """The bundles of all variants, each with the text encoder, exported and checked where they are not there yet."""
    files = checkpoint / "infinity.safetensors", checkpoint / "vae.safetensors"
    tokens = json.loads((checkpoint / "config.json").read_text())["text_tokens"]
    loaded = load_checkpoint(*files, text_tokens=tokens)
    assert loaded.model.text is not None
    text, traced = load_text_encoder(checkpoint / "text", tokens, width=loaded.model.text.width), Traced()
    mark = hash_file(files[0])[:12]  # another training is another bundle
    places = {variant: folder / f"text-demo-{variant}-{mark}" for variant in METHODS}
    for variant, place in places.items():
        if not place.exists():
            chosen = replace(recipe(RECIPE), methods=METHODS[variant])
            plan = plan_for(chosen, loaded.model, loaded.tokenizer, loaded.schedule)
            options = Options(plan, Recipe(place.name, 1), text=text, check=check)
            export_bundle(loaded, options, place, lambda *_: None, traced)
            print(f"exported {place}", flush=True)
    return places


def draw(places: dict[str, Path], first: int, count: int, batch: int, threads: int) -> dict[str, NDArray[np.uint8]]:
    """Pictures of the sentences from ``first`` on, every variant with the same noise."""
    pipelines = {name: Pipeline.open(place, batch_sizes=[batch], threads=threads) for name, place in places.items()}
    made: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in places}
    for start in range(first, first + count, batch):
        prompts = [sentence(i) for i in range(start, min(start + batch, first + count))]
        for name, pipeline in pipelines.items():
            made[name].append(pipeline.generate(prompts, seed=SEED, first_image=start - first).images)
    return {name: np.concatenate(parts) for name, parts in made.items()}


def judged(seen: dict[str, Answers], truth: Answers) -> dict[str, dict[str, object]]:
    """Shares of right answers of each variant, by attribute and of whole sentences, and what FastVAR loses, paired."""
    columns: dict[str, Sequence[int]] = {name: [i] for i, name in enumerate(ATTRIBUTES)}
    columns["whole sentence"] = range(len(ATTRIBUTES))
    right = {
        variant: {name: (found == truth)[:, list(which)].all(axis=1) for name, which in columns.items()}
        for variant, found in seen.items()
    }
    rows: dict[str, dict[str, object]] = {}
    for name in columns:
        lost = right["full"][name].astype(float) - right["fastvar"][name]
        rows[name] = {
            **{variant: float(right[variant][name].mean()) for variant in seen},
            "loss": float(lost.mean()),
            "loss_interval": interval(bootstrap_mean(lost)),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what train_text_demo.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles, and the result text_demo.json")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--judge-minutes", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    pool = (TRAINING[0], 20_000)
    judge = train_judge(60 * options.judge_minutes, pictures(*pool), answers(*pool))
    first, truth = FRESH[0], answers(FRESH[0], options.pictures)
    drawn = {"drawn by rule": judge.answers(pictures(first, options.pictures))}
    places = export_all(options.checkpoint, options.work)
    made = draw(places, first, options.pictures, options.batch, options.threads)
    rows = judged({name: judge.answers(images) for name, images in made.items()}, truth)
    limits = dict(zip(ATTRIBUTES, (drawn["drawn by rule"] == truth).mean(axis=0).tolist(), strict=True))
    report = {"machine": asdict(this_machine()), "pictures": options.pictures, "judge": limits, "attributes": rows}
    (options.work / "text_demo.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["attributes"], indent=1))


if __name__ == "__main__":
    main()
