"""Three ways to make one and the same picture's code sum with an Infinity: upstream's, our eager model's, a bundle's.

Run as a script it reads a task as JSON, opens one side, makes one run and ends, so that whoever started it sees what
memory that takes. A side imports what it needs alone: the runtime's process has no PyTorch. Nothing is decoded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nextscale.plan import codec
from nextscale.plan.types import Grid, Plan

if TYPE_CHECKING:
    from nextscale.export.checkpoint import Checkpoint

Floats = NDArray[np.float32]
UPSTREAM, EAGER, RUNTIME = "upstream", "eager", "runtime"
NAMES = (UPSTREAM, EAGER, RUNTIME)


@dataclass(frozen=True)
class Ask:
    """One picture of a drawn text of so many tokens."""

    text_tokens: int = 64
    seed: int = 0
    guidance_scale: float = 3.0
    top_p: float = 0.97
    temperature: float = 0.5

    def features(self, width: int) -> Floats:
        """(text tokens, width): what a text encoder would have made."""
        return np.random.default_rng(self.seed).standard_normal((self.text_tokens, width), np.float32)


@dataclass
class Run:
    """Seconds of what comes once and of each step; ``noise`` apart (upstream's is inside its steps).

    ``tokens`` by step, (1, n, bits), and ``logits`` after guidance, (1, n, 2 * bits), where they were asked for.
    """

    begin: float = 0.0
    steps: list[float] = field(default_factory=list)
    noise: float = 0.0
    tokens: list[NDArray[np.int32]] = field(default_factory=list)
    logits: list[Floats] = field(default_factory=list)

    @property
    def total(self) -> float:
        """Everything, noise included."""
        return self.begin + sum(self.steps) + self.noise


class Side(Protocol):
    """Something that makes a picture's code sum."""

    def run(self, ask: Ask, tokens: list[NDArray[np.int32]] | None = None, logits: bool = False) -> Run:
        """One picture; ``tokens`` forces the bits of every step."""


class UpstreamSide:
    """As upstream's eager code does it."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint) -> None:
        from upstream_infinity import UpstreamInfinity

        self.plan, self.model = plan, UpstreamInfinity.over(plan, checkpoint.var.state_dict())

    def run(self, ask: Ask, tokens: list[NDArray[np.int32]] | None = None, logits: bool = False) -> Run:
        import torch

        run, features = Run(), torch.from_numpy(ask.features(self.model.cfg_uncond.shape[1]))
        forced = None if tokens is None else [torch.from_numpy(t) for t in tokens]
        clock = Clock()
        text = self.model.begin(features)
        run.begin = clock.lap()
        settings = (ask.guidance_scale, ask.temperature, ask.top_p, ask.seed)
        for made in self.model.stream(text, *settings, forced):
            run.steps.append(clock.lap())
            run.tokens.append(made.tokens.int().numpy())
            if logits:
                run.logits.append(made.logits.numpy())
            clock.lap()
        return run


class EagerSide:
    """Our eager model, its derived tensors folded as for graphs; of the tokenizer nothing is loaded."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint) -> None:
        from nextscale.export.eager import Eager

        self.plan, self.eager = plan, Eager(plan, checkpoint.var.fold(), checkpoint.empty_vae())

    def run(self, ask: Ask, tokens: list[NDArray[np.int32]] | None = None, logits: bool = False) -> Run:
        import torch

        from nextscale.export.eager import Request, State

        run, eager, state = Run(), self.eager, State()
        features = ask.features(given_width(self.plan))
        forced = None if tokens is None else {i: torch.from_numpy(t) for i, t in enumerate(tokens)}
        settings = (ask.seed, ask.guidance_scale, ask.top_p, ask.temperature)
        with torch.inference_mode():
            clock, request = Clock(), Request([features], *settings, forced)
            cond = eager.begin(eager.given(request))
            run.begin = clock.lap()
            for step in self.plan.steps:
                draw = eager.draw(step, request)
                run.noise += clock.lap()
                made = eager.run_step(step, cond, state, draw)
                run.steps.append(clock.lap())
                run.tokens.append(made.tokens.numpy())
                if logits:
                    run.logits.append(made.logits.numpy())
                clock.lap()
        return run


class RuntimeSide:
    """A bundle through the runtime's front, step by step, on the packed target beside it."""

    def __init__(self, bundle: Path, threads: int) -> None:
        from nextscale.runtime.backends.onnxruntime import OnnxRuntime
        from nextscale.runtime.pipeline import Pipeline

        self.pipeline = Pipeline.open(bundle, OnnxRuntime(threads=threads, packed=True), batch_sizes=(1,))
        self.plan = self.pipeline.manifest.plan

    def run(self, ask: Ask, tokens: list[NDArray[np.int32]] | None = None, logits: bool = False) -> Run:
        run, clock = Run(), Clock()
        steps = self.pipeline.stream(
            ask.features(given_width(self.plan)),
            seed=ask.seed,
            guidance_scale=ask.guidance_scale,
            top_p=ask.top_p,
            temperature=ask.temperature,
            tokens=tokens,
        )
        with closing(steps):
            for made in steps:
                seconds, timing = clock.lap(), made.timing
                if not made.index:  # what came before it: the request written, and `begin`
                    run.begin = seconds - timing.inputs - timing.seconds
                    seconds -= run.begin
                run.noise += timing.inputs
                run.steps.append(seconds - timing.inputs)
                run.tokens.append(made.tokens)
                if logits:
                    run.logits.append(made.logits())
                clock.lap()
        return run


class Clock:
    """Seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def given_width(plan: Plan) -> int:
    """The width of a text's features."""
    text = plan.model().text
    assert text is not None
    return text.width


def checkpoint_of(files: tuple[Path, Path], plan: Plan) -> Checkpoint:
    """A drawn checkpoint with the numbers of a plan; its tensors are not read yet."""
    text = plan.model().text
    return checkpoint_for(files, plan.schedule, text.tokens if text else None)


def checkpoint_for(files: tuple[Path, Path], schedule: tuple[Grid, ...], text_room: int | None) -> Checkpoint:
    """The same for a schedule, and texts up to a length; None is what the model was trained for."""
    from nextscale.export.checkpoint import load_checkpoint

    return load_checkpoint(*files, schedule, text_tokens=text_room)


def open_side(name: str, plan: Plan, files: tuple[Path, Path], bundle: Path, threads: int) -> Side:
    """One side by its name, in a process that has no other."""
    if name == RUNTIME:
        return RuntimeSide(bundle, threads)
    import torch

    torch.set_num_threads(threads)
    make: Callable[[Plan, Checkpoint], Side] = UpstreamSide if name == UPSTREAM else EagerSide
    return make(plan, checkpoint_of(files, plan))


def task_of(name: str, plan: Plan, files: tuple[Path, Path], bundle: Path, threads: int, ask: Ask) -> str:
    """What a process of its own has to be told to open and run that side."""
    where = {"files": [str(file) for file in files], "bundle": str(bundle), "threads": threads}
    return json.dumps({"side": name, "plan": codec.to_json(plan), **where, "ask": asdict(ask)})


def main() -> None:
    """One task: a side, opened and run once."""
    task: dict[str, Any] = json.load(sys.stdin)
    model, vae = map(Path, task["files"])
    plan = codec.from_json(task["plan"])
    side = open_side(task["side"], plan, (model, vae), Path(task["bundle"]), task["threads"])
    print(json.dumps({"seconds": side.run(Ask(**task["ask"])).total, "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
