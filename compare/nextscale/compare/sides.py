"""What is compared: ways to make the same pictures, behind one face.

A side is named data first (which plan, which precision, which bundle), so that another process can open it too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nextscale.export.bundle import prepared
from nextscale.export.checkpoint import Checkpoint, load_checkpoint
from nextscale.export.eager import Eager, Request
from nextscale.plan.errors import InputError
from nextscale.plan.types import Grid, Plan
from nextscale.runtime.backends import make_backend
from nextscale.runtime.pipeline import Pipeline
from nextscale.runtime.result import StepResult

Floats = NDArray[np.float32]
Tokens = tuple[NDArray[np.int32], ...]  # by step, each (pictures, tokens of the step)


@dataclass(frozen=True)
class Ask:
    """One run: pictures 0, 1, ... of a seed. ``tokens`` forces those of every step; None samples."""

    labels: tuple[int, ...]
    seed: int
    guidance_scale: float
    top_p: float
    temperature: float
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Run:
    """What one run made: tokens, pictures (B, H, W, 3) float32 in [0, 1], seconds by graph and in all.

    A graph's seconds include drawing its noise. ``logits`` by step, (B, n, V) float32 after guidance, where asked for.
    """

    tokens: Tokens
    pictures: Floats
    seconds: dict[str, float]
    total: float
    logits: tuple[Floats, ...] = ()


class Side(Protocol):
    """Something that makes pictures."""

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """Make the pictures of ``ask``."""

    def versions(self) -> dict[str, str]:
        """Names and versions of what executes."""


@dataclass(frozen=True)
class Spec:
    """A side before it is opened. ``bundle`` is None for eager PyTorch.

    ``reference`` names the eager side that runs the same plan in the same precision; an eager side has none.
    """

    name: str
    plan: Plan
    precision: str
    bundle: Path | None = None
    reference: str | None = None


@dataclass
class Opener:
    """Opens sides; eager sides share one loaded checkpoint.

    ``threads`` are those of one pass on either side; ``batch`` is the number of pictures in every run;
    ``schedule`` is the bundles', which the checkpoint need not name.
    """

    model: Path
    vae: Path
    backend: str
    device: str
    threads: int
    batch: int
    schedule: tuple[Grid, ...]

    def open(self, spec: Spec) -> Side:
        """The side, loaded. Raises a :class:`~nextscale.plan.errors.NextscaleError`."""
        if spec.bundle is None:
            return EagerSide(prepared(self.checkpoint, spec.plan, spec.precision))
        engine = make_backend(self.backend, self.device, self.threads)
        return BundleSide(Pipeline.open(spec.bundle, engine, batch_sizes=(self.batch,)))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, loaded once."""
        return load_checkpoint(self.model, self.vae, self.schedule)

    def check(self, specs: Sequence[Spec]) -> None:
        """Refuse a checkpoint that is not of the plans' model. Keeps nothing of it: memory is measured next."""
        checkpoint = load_checkpoint(self.model, self.vae, self.schedule)
        plan = specs[0].plan
        pairs = {"model": (checkpoint.model, plan.model()), "tokenizer": (checkpoint.tokenizer, plan.tokenizer)}
        for what, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise InputError(
                    f"{self.model} and {self.vae} are not what the bundle was made of: their {what} is {ours}, the "
                    f"bundle's is {theirs}; give the checkpoint that was exported"
                )


class EagerSide:
    """A plan in eager PyTorch."""

    def __init__(self, eager: Eager) -> None:
        self.eager = eager

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """Step by step, timed from outside where the eager model does not time itself."""
        forced = None if ask.tokens is None else {i: torch.from_numpy(t) for i, t in enumerate(ask.tokens)}
        request = Request(ask.labels, ask.seed, ask.guidance_scale, ask.top_p, ask.temperature, forced)
        seconds: dict[str, float] = {}
        tokens, kept, code_sum = [], [], torch.empty(0)
        start = time.perf_counter()
        for done in self.eager.stream(request):
            if not seconds:
                seconds["begin"] = time.perf_counter() - start - done.seconds
            seconds[f"step_{done.step.order:02d}"] = done.seconds
            code_sum = done.prediction.code_sum
            tokens.append(done.prediction.tokens.cpu().numpy())
            if logits:
                kept.append(done.prediction.logits.float().cpu().numpy())
        decoding = time.perf_counter()
        pictures = self.eager.decode(code_sum)
        end = time.perf_counter()
        seconds["decode"] = end - decoding
        return Run(tuple(tokens), pictures, seconds, end - start, tuple(kept))

    def versions(self) -> dict[str, str]:
        """The version of PyTorch."""
        return {"torch": str(torch.__version__)}


class BundleSide:
    """A bundle through the runtime's front, as a service would call it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """One call of ``generate``."""
        kept: list[Floats] = []

        def keep(step: StepResult) -> None:
            kept.append(step.logits())

        result = self.pipeline.generate(
            ask.labels,
            seed=ask.seed,
            guidance_scale=ask.guidance_scale,
            top_p=ask.top_p,
            temperature=ask.temperature,
            tokens=ask.tokens,
            on_step=keep if logits else None,
        )
        seconds = {timing.graph: timing.inputs + timing.seconds for timing in result.timings}
        return Run(result.tokens, result.floats, seconds, result.seconds, tuple(kept))

    def versions(self) -> dict[str, str]:
        """What the backend says of itself."""
        return self.pipeline.backend.versions()


def same_numbers(plan: Plan, other: Plan) -> bool:
    """Whether two plans run the same, whatever they are called and where they come from."""
    plain = {"name": "", "methods": (), "defaults": ()}
    return replace(plan, **plain) == replace(other, **plain)  # type: ignore[arg-type]
