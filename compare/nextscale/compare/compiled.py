"""Eager PyTorch through ``torch.compile``: the same computation, compiled step by step for its static shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nextscale.export.eager import Eager, OnBlock, Rows, State
from nextscale.export.models.contract import Conditions
from nextscale.export.models.step import Draw, Prediction
from nextscale.plan.types import Step

LIMIT = 4096  # of recompilations


class CompiledEager(Eager):
    """A plan whose ``begin``, steps and decoder are compiled, each at its first run, with one graph each and no breaks.

    On a GPU in the mode ``reduce-overhead``, which replays CUDA graphs; a picture's tensors are then valid until the
    next picture is begun.
    """

    def __init__(self, eager: Eager) -> None:
        super().__init__(eager.plan, eager.var, eager.vae)
        self.on_gpu = eager.device.type == "cuda"
        mode = "reduce-overhead" if self.on_gpu else "default"
        compiled = partial(torch.compile, dynamic=False, fullgraph=True, mode=mode)
        self._begin = compiled(eager.var.begin)
        self._steps = {step.order: compiled(_pure(eager, step)) for step in eager.plan.steps}
        self._decode = compiled(eager.vae.decode)

    def begin(self, given: Mapping[str, Tensor]) -> Conditions:
        """What is computed once per picture; the tensors of the picture before end here."""
        if self.on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        cond: Conditions = _compiling(self._begin, given, len(self.plan.guidance.rows))
        return cond

    def run_step(
        self, step: Step, cond: Conditions, state: State, draw: Draw, on_block: OnBlock | None = None
    ) -> Prediction:
        """One step; ``on_block`` would break the graph and is not called."""
        prediction: Prediction
        prediction, state.tapes, state.caches = _compiling(
            self._steps[step.order], cond, state.map, state.code_sum, state.tapes, state.caches, draw
        )
        state.map, state.code_sum = prediction.next_map, prediction.code_sum
        return prediction

    def pixels(self, code_sum: Tensor) -> Tensor:
        """Code sum (B, Z, Sh, Sw) to pictures (B, 3, H, W), on the device."""
        pictures: Tensor = _compiling(self._decode, code_sum)
        return pictures


def _pure(eager: Eager, step: Step) -> Callable[..., Any]:
    """A step without side effects: what it reads are its arguments, what it leaves its results."""

    def run(
        cond: Conditions,
        input_map: Tensor | None,
        code_sum: Tensor | None,
        tapes: Mapping[str, Rows],
        caches: Mapping[str, Tensor],
        draw: Draw,
    ) -> tuple[Prediction, dict[str, Rows], dict[str, Tensor]]:
        state = State(input_map, code_sum, dict(tapes), dict(caches))
        prediction = eager.run_step(step, cond, state, draw)
        return prediction, state.tapes, state.caches

    return run


def limits() -> AbstractContextManager[None]:
    """What is compiled inside never falls back in silence; around a whole picture it costs no time of its parts.

    All steps share one code object, so they count as recompilations of one function, those of plans before among them.
    """
    inside: AbstractContextManager[None] = torch._dynamo.config.patch(
        recompile_limit=LIMIT, accumulated_recompile_limit=LIMIT, fail_on_recompile_limit_hit=True
    )
    return inside


def _compiling(function: Callable[..., Any], *arguments: Any) -> Any:
    if torch._dynamo.config.recompile_limit == LIMIT:
        return function(*arguments)
    with limits():
        return function(*arguments)
