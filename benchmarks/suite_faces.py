"""What the hand-made graphs and a bundle look like to a comparison."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import numpy as np
from dynamic_session import DynamicSessions
from numpy.typing import NDArray
from suite_clock import Clocked, Spent

from nextscale.compare.sides import Ask, BundleSide, Run
from nextscale.plan.types import Plan
from nextscale.runtime import Pipeline


class DynamicSide:
    """The graphs that one makes by hand."""

    settles = 0

    def __init__(self, folder: Path, plan: Plan, threads: int) -> None:
        self.sessions = DynamicSessions(folder, plan, threads)

    def versions(self) -> dict[str, str]:
        """The version of ONNX Runtime."""
        import onnxruntime

        return {"onnxruntime": str(onnxruntime.__version__)}

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """One picture after the other call."""
        start = time.perf_counter()
        settings = ask.labels, ask.seed, ask.guidance_scale, ask.top_p, ask.temperature
        made = self.sessions.run(*settings, ask.tokens, logits)
        return Run(made.tokens, made.pictures, made.seconds, time.perf_counter() - start, made.logits)


class OurSide(BundleSide):
    """A bundle on its packed target; ``spent`` is what the last run had of graphs and noise."""

    def __init__(self, bundle: Path, threads: int, batch: int = 1) -> None:
        backend = Clocked(threads)
        super().__init__(Pipeline.open(bundle, backend, batch_sizes=(batch,), verify="size"))
        self.spent: Spent = backend.spent

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """One call of ``generate``."""
        self.spent.start()
        return super().run(ask, logits)

    def code_sum(self, ask: Ask) -> NDArray[np.float32]:
        """The last step's code sum (B, Z, Sh, Sw)."""
        steps = self.pipeline.stream(
            list(ask.labels),
            seed=ask.seed,
            guidance_scale=ask.guidance_scale,
            top_p=ask.top_p,
            temperature=ask.temperature,
            tokens=ask.tokens,
        )
        with closing(steps):
            *_, last = steps
        return last.code_sum
