"""What half precision costs the demo model: the drift of logits, tokens and pictures from float32, and what holds it.

    python benchmarks/bench_precision.py [--pictures 4000] [--forced 128]      # an hour or two on one core

Eager PyTorch on the CPU in exactly the layout of the exported half graphs, full and with FastVAR:

- forced: every step gets the float32 model's tokens as its past; compared are its logits, and its own draws from the
  same noise;
- free: pictures from the same seeds, judged by examples/judge.py; losses are paired;
- islands: forced again, with one part that stays float32 in the graphs computed in half (precision_islands.py).

With ``--minutes`` it may end with fewer free pictures; the result says how many there were.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from precision_islands import ISLANDS, Island, halved, recording
from precision_tables import tables
from precision_tallies import Errors, Forced, Free, Matches, share

from nextscale.cli.progress import Progress
from nextscale.compare.machine import this_machine
from nextscale.export.checkpoint import Checkpoint, load_checkpoint
from nextscale.export.components import compute_in
from nextscale.export.eager import Eager, Request, State
from nextscale.export.graphs import DTYPES
from nextscale.export.models.step import Prediction, after_head
from nextscale.plan.recipes import RECIPES, plan_for
from nextscale.runtime.result import to_uint8

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "examples"))
from judge import Judge, bootstrap_mean, load_judge, upper_bound, verdicts  # noqa: E402

RESULTS = REPOSITORY / "benchmarks" / "results"
RECIPE_OF = {"full": "demo", "fastvar": "demo-fastvar"}
SEED = 40_000  # of the first batch; every further batch has the next one
HOW = (
    "eager PyTorch on a CPU; fp16 on a CPU computes through float32 in places, and matrix products of both halves add "
    "up in float32; not measured on hardware yet"
)


@dataclass(frozen=True)
class Variant:
    """A recipe in a precision, as it is exported or with one island in half as well."""

    recipe: str
    precision: str
    island: Island | None = None

    def within(self) -> AbstractContextManager[None]:
        """The context in which this variant's model is made and run."""
        return halved(self.island, DTYPES[self.precision])

    def __str__(self) -> str:
        return f"{self.recipe} {self.precision}, {self.island.what if self.island else 'as exported'}"


FLOAT32 = tuple(Variant(recipe, "fp32") for recipe in RECIPE_OF)
EXPORTED = tuple(Variant(recipe, precision) for recipe in RECIPE_OF for precision in ("fp16", "bf16"))
HALVED = tuple(Variant(island.recipe, precision, island) for island in ISLANDS for precision in ("fp16", "bf16"))


def model_of(checkpoint: Checkpoint, variant: Variant) -> Eager:
    """The eager model cast as the exporter casts it; call it within the variant's context."""
    plan = plan_for(RECIPES[RECIPE_OF[variant.recipe]], checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)
    var, vae = copy.deepcopy(checkpoint.var).fold(), copy.deepcopy(checkpoint.vae).fold()
    if variant.precision != "fp32":
        compute_in(var, vae, DTYPES[variant.precision])
    return Eager(plan, var, vae)


@torch.inference_mode()
def run_forced(eager: Eager, request: Request, wanted: Sequence[Prediction]) -> list[Prediction]:
    """Every step's logits and own draws, with the tokens of ``wanted`` as its past; code sums are of these too."""
    cond, state, made = eager.begin(eager.given(request)), State(), []
    for step, truth in zip(eager.plan.steps, wanted, strict=True):
        before, draw = state.code_sum, eager.draw(step, request)
        drawn = eager.run_step(step, cond, state, draw)
        # Its logits are guided already, and its tokens are set: only the way to the next input is wanted.
        forced = draw._replace(guidance=torch.ones(len(request), 1), tokens=truth.tokens)
        after = after_head(eager.plan, step, eager.vae.quantize, drawn.logits, forced, before)
        state.map, state.code_sum = after.next_map, after.code_sum
        made.append(drawn._replace(code_sum=after.code_sum))
    return made


@dataclass(frozen=True)
class Counts:
    """How much is drawn, in pictures for each variant; whole batches, none begun after so many minutes."""

    pictures: int
    forced: int
    batch: int
    minutes: float = math.inf
    seed: int = SEED


def measure(
    checkpoint: Checkpoint, judge: Judge, counts: Counts, progress: Callable[[str, int, int, str], None]
) -> tuple[dict[Variant, Free], dict[Variant, Forced]]:
    """All variants by turns, batch by batch."""
    models, start = {}, time.monotonic()
    for variant in (*FLOAT32, *EXPORTED, *HALVED):
        with variant.within():
            models[variant] = model_of(checkpoint, variant)
    steps = len(models[FLOAT32[0]].plan.steps)
    free = {v: Free(draws(steps)) for v in (*FLOAT32, *EXPORTED)}
    forced = {v: Forced([Errors() for _ in range(steps)], draws(steps)) for v in (*EXPORTED, *HALVED)}
    batches, forced_batches = (math.ceil(n / counts.batch) for n in (counts.pictures, counts.forced))
    total, done = batches * len(free) + forced_batches * len(forced), 0
    for number in range(batches):
        if time.monotonic() - start > 60 * counts.minutes:
            break
        request = request_of(number, counts.batch, models[FLOAT32[0]], counts.seed)
        truth: dict[str, tuple[NDArray[np.float32], list[Prediction]]] = {}  # by recipe: pictures, steps
        for variant, seen in free.items():
            progress("free", done, total, str(variant))
            with recording() if variant in FLOAT32 else nullcontext():
                pictures, run = models[variant].generate(request)
            got = [one.prediction for one in run]
            truth.setdefault(variant.recipe, (pictures, got))  # float32 comes first
            right = verdicts(judge, to_uint8(pictures))[0] == np.array(request.subjects)
            seen.add(right, truth[variant.recipe][1], got)
            done += 1
        for variant, drift in forced.items() if number < forced_batches else ():
            progress("forced", done, total, str(variant))
            exact, wanted = truth[variant.recipe]
            with variant.within():
                got = run_forced(models[variant], request, wanted)
                drift.pixels.add(255 * exact, 255 * models[variant].decode(got[-1].code_sum))
            drift.add(wanted, got)
            done += 1
    return free, forced


def draws(steps: int) -> list[Matches]:
    """Nothing counted yet."""
    return [Matches() for _ in range(steps)]


def request_of(number: int, batch: int, eager: Eager, seed: int = SEED) -> Request:
    """The batch of that number: its classes go round, its noise is its own, settings are the recipe's."""
    settings = dict(eager.plan.defaults)
    return Request(
        [(number * batch + i) % eager.var.model.classes for i in range(batch)],
        seed=seed + number,
        guidance_scale=settings["guidance_scale"],
        top_p=settings["top_p"],
        temperature=settings["temperature"],
    )


def report_of(free: dict[Variant, Free], forced: dict[Variant, Forced]) -> dict[str, Any]:
    """What is written down, rows in the order of the variants."""
    right = {variant: np.concatenate(one.right).astype(float) for variant, one in free.items()}
    exported, islands = [], []
    for variant, drift in forced.items():
        row = {"recipe": variant.recipe, "precision": variant.precision} | drift.report()
        if variant.island:
            islands.append({"island": variant.island.what} | row)
            continue
        exact, matches = right[Variant(variant.recipe, "fp32")], free[variant].draws
        loss = exact - right[variant]
        row |= {
            "equal_free": share(matches),
            "accuracy": float(right[variant].mean()),
            "accuracy_fp32": float(exact.mean()),
            "loss": float(loss.mean()),
            "loss_upper_bound": upper_bound(bootstrap_mean(loss)),
        }
        for step, one in zip(row["steps"], matches, strict=True):
            step["equal_free"] = share([one])
        exported.append(row)
    return {"exported": exported, "islands": islands}


def main() -> None:
    """Measures, prints the tables, writes precision.json and precision.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=REPOSITORY / "checkpoints" / "demo")
    parser.add_argument("--pictures", type=int, default=4000, help="free ones of each variant, rounded up to batches")
    parser.add_argument("--forced", type=int, default=128, help="how many of them are forced too")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=SEED, help="of the first batch; the next one's is one higher")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no batch is begun after these")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = load_checkpoint(options.checkpoint / "var.safetensors", options.checkpoint / "vae.safetensors")
    judge = load_judge(options.checkpoint / "judge.safetensors")
    counts = Counts(options.pictures, options.forced, options.batch, options.minutes, options.seed)
    with Progress() as progress:
        free, forced = measure(checkpoint, judge, counts, progress)
    done = sum(map(len, free[FLOAT32[0]].right))
    settings = {
        "how": HOW,
        "pictures": done,
        "forced": min(done, math.ceil(options.forced / options.batch) * options.batch),
        "batch": options.batch,
        "threads": options.threads,
        "seeds": [options.seed, options.seed + done // options.batch - 1],
        "defaults": dict(RECIPES["demo"].defaults),
    }
    report = {"machine": asdict(this_machine()), "settings": settings} | report_of(free, forced)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "precision.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (options.out / "precision.md").write_text(tables(report), encoding="utf-8")
    print(tables(report))


if __name__ == "__main__":
    main()
