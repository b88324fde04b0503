"""What is compared: ways to make the same pictures, behind one face.

A side is named data first (which plan, which precision, which bundle), so that another process can open it too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nextscale.compare.clock import Clock
from nextscale.compare.columns import COMPILE, EAGER, open_backend
from nextscale.compare.compiled import CompiledEager, limits
from nextscale.compare.posed import posed
from nextscale.export.bundle import prepared
from nextscale.export.checkpoint import Checkpoint, checkpoint_for
from nextscale.export.eager import Eager, Request, State
from nextscale.export.models.contract import TokenizerModel, Transformer
from nextscale.plan.errors import InputError
from nextscale.plan.types import Plan
from nextscale.runtime.pipeline import Pipeline
from nextscale.runtime.result import StepResult

Floats = NDArray[np.float32]
AnyModule = TypeVar("AnyModule", bound=nn.Module)
Tokens = tuple[NDArray[np.int32], ...]  # by step, each (pictures, tokens of the step)


@dataclass(frozen=True)
class Ask:
    """One run: pictures 0, 1, ... of a seed. ``tokens`` forces those of every step; None samples.

    ``labels`` are classes, or the numbers of drawn texts (:mod:`nextscale.compare.posed`).
    """

    labels: tuple[int, ...]
    seed: int
    guidance_scale: float
    top_p: float
    temperature: float
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Run:
    """What one run made: tokens, pictures (B, H, W, 3) float32 in [0, 1], seconds by graph and in all.

    On a CPU a graph's seconds include drawing its noise. ``logits`` by step, (B, n, V) float32 after guidance, where
    asked for.
    """

    tokens: Tokens
    pictures: Floats
    seconds: dict[str, float]
    total: float
    logits: tuple[Floats, ...] = ()


class Side(Protocol):
    """Something that makes pictures; ``settles`` is the number of runs after which its times mean something."""

    settles: int

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """Make the pictures of ``ask``."""

    def versions(self) -> dict[str, str]:
        """Names and versions of what executes."""


@dataclass(frozen=True)
class Spec:
    """A side before it is opened. ``column`` is what executes it; ``bundle`` is None for PyTorch.

    ``reference`` names the eager side that runs the same plan in the same precision; an eager side has none.
    """

    name: str
    plan: Plan
    precision: str
    bundle: Path | None = None
    reference: str | None = None
    column: str = EAGER


@dataclass
class Opener:
    """Opens sides, all on one ``device``; those of PyTorch share one loaded checkpoint.

    ``threads`` are those of one pass on either side; ``batch`` is the number of pictures in every run;
    ``plan`` is one of the bundles', whose schedule the checkpoint need not name.
    """

    model: Path
    vae: Path
    device: str
    threads: int
    batch: int
    plan: Plan
    _models: dict[str, tuple[Transformer, TokenizerModel]] = field(default_factory=dict, init=False)  # by precision

    def open(self, spec: Spec) -> Side:
        """The side, loaded. Raises a :class:`~nextscale.plan.errors.NextscaleError`."""
        if spec.bundle is None:
            eager = self.eager(spec.plan, spec.precision)
            return EagerSide(CompiledEager(eager) if spec.column == COMPILE else eager)
        engine = open_backend(spec.column, self.device, self.threads)
        return BundleSide(Pipeline.open(spec.bundle, engine, batch_sizes=(self.batch,)))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, loaded once, in the host's memory."""
        return checkpoint_for(self.model, self.vae, self.plan)

    def eager(self, plan: Plan, precision: str) -> Eager:
        """A plan's model on the device: cast by the host and moved once, for all plans of that precision."""
        if precision not in self._models:
            if self.device == "cuda":
                exact_float32()
            made = prepared(self.checkpoint, plan, precision)
            self._models[precision] = placed(made.var, self.device), placed(made.vae, self.device)
        var, vae = self._models[precision]
        return Eager(plan, placed(var, self.device), placed(vae, self.device))

    def check(self, specs: Sequence[Spec]) -> None:
        """Refuse a checkpoint that is not of the plans' model. Keeps nothing of it: memory is measured next."""
        checkpoint = checkpoint_for(self.model, self.vae, self.plan)
        plan = specs[0].plan
        pairs = {"model": (checkpoint.model, plan.model()), "tokenizer": (checkpoint.tokenizer, plan.tokenizer)}
        for what, (ours, theirs) in pairs.items():
            if ours != theirs:
                raise InputError(
                    f"{self.model} and {self.vae} are not what the bundle was made of: their {what} is {ours}, the "
                    f"bundle's is {theirs}; give the checkpoint that was exported"
                )


def placed(module: AnyModule, device: str) -> AnyModule:
    """A copy of a module on a device, over the same tensors where they are there already."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        there = tensor.to(device)
        if there is tensor or not isinstance(tensor, nn.Parameter):
            return there
        return nn.Parameter(there, requires_grad=False)

    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): moved(tensor) for tensor in tensors})


def exact_float32() -> None:
    """From here on this process's float32 on a GPU is float32, not TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def on_device(checkpoint: Checkpoint, device: str) -> Checkpoint:
    """The checkpoint itself, its models moved; float32 on a GPU is then float32."""
    if device == "cuda":
        exact_float32()
    for module in (checkpoint.var, checkpoint.vae):
        module.to(device)
    return checkpoint


class EagerSide:
    """A plan in eager PyTorch, or compiled.

    On a GPU nothing waits between steps, and the noise, which the runtime makes on the device, is there beforehand.
    """

    def __init__(self, eager: Eager) -> None:
        self.eager = eager
        self.on_gpu = eager.device.type == "cuda"
        compiled = isinstance(eager, CompiledEager)
        self.settles = 0 if not compiled else 3 if self.on_gpu else 1  # CUDA graphs are warmed up, captured, replayed

    def run(self, ask: Ask, logits: bool = False, tick: Callable[[], None] = lambda: None) -> Run:
        """Step by step, ``tick`` called after each; results are brought to the host at the end."""
        eager, plan, made = self.eager, self.eager.plan, []
        around = limits() if isinstance(eager, CompiledEager) else nullcontext()
        with around, torch.inference_mode():  # its inputs too: what is compiled tells inference's tensors from others
            forced = None if ask.tokens is None else {i: torch.from_numpy(t) for i, t in enumerate(ask.tokens)}
            request = Request(
                posed(plan.model(), ask.labels), ask.seed, ask.guidance_scale, ask.top_p, ask.temperature, forced
            )
            given = eager.given(request)
            draws = {step.order: eager.draw(step, request) for step in plan.steps} if self.on_gpu else {}
            clock = Clock(self.on_gpu)
            cond, state = eager.begin(given), State()
            clock.mark("begin")
            tick()
            for step in plan.steps:
                draw = draws.get(step.order) or eager.draw(step, request)
                made.append(eager.run_step(step, cond, state, draw))
                clock.mark(f"step_{step.order:02d}")
                tick()
            pictures = eager.decode(made[-1].code_sum)
            clock.mark("decode")
            tick()
            seconds, total = clock.read()
        tokens = tuple(step.tokens.cpu().numpy() for step in made)
        kept = tuple(step.logits.float().cpu().numpy() for step in made) if logits else ()
        return Run(tokens, pictures, seconds, total, kept)

    def versions(self) -> dict[str, str]:
        """The version of PyTorch."""
        return {"torch": str(torch.__version__)}


class BundleSide:
    """A bundle through the runtime's front, as a service would call it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.settles = 1 if pipeline.backend.replays else 0  # a first launch puts onto the device what is captured

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """One call of ``generate``."""
        kept: list[Floats] = []

        def keep(step: StepResult) -> None:
            kept.append(step.logits())

        result = self.pipeline.generate(
            posed(self.pipeline.manifest.plan.model(), ask.labels),
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
