"""The suite's sides behind the one face of ``nextscale compare``, all making pictures of the same checkpoint.

Run as a script it reads a task as JSON, opens one side, makes one picture and ends, so that whoever started it sees
what time and memory that takes. It imports what the side needs alone: a bundle's process and the hand-made graphs' have
no PyTorch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite_subjects import COMPILED, DYNAMIC, EAGER, OURS, UPSTREAM, Contender

from nextscale.plan import codec
from nextscale.plan.types import Plan

if TYPE_CHECKING:
    from nextscale.compare.sides import Ask, Opener, Side

Picture = Callable[[], object]


def open_side(side: str, plan: Plan, place: Path | None, opener: Opener, batch: int = 1) -> Side:
    """A side in this process; ``place`` is the bundle, or the folder of hand-made graphs."""
    import suite_faces as faces

    from nextscale.compare.columns import COMPILE
    from nextscale.compare.columns import EAGER as PLAIN
    from nextscale.compare.sides import Spec

    if side == UPSTREAM:
        from upstream_side import upstream_side

        return upstream_side(opener.checkpoint, plan)
    if side in (EAGER, COMPILED):
        return opener.open(Spec(side, plan, "fp32", column=COMPILE if side == COMPILED else PLAIN))
    assert place is not None
    if side == DYNAMIC:
        return faces.DynamicSide(place, plan, opener.threads)
    return faces.OurSide(place, opener.threads, batch)


def task_of(contender: Contender, plan: Plan, place: Path | None, opener: Opener, ask: Ask) -> str:
    """What a process of its own has to be told to open and run that side."""
    where = {"model": str(opener.model), "vae": str(opener.vae), "place": None if place is None else str(place)}
    return json.dumps(
        {
            "side": contender.side,
            "plan": codec.to_json(plan),
            **where,
            "threads": opener.threads,
            "ask": {**asdict(ask), "tokens": None},
        }
    )


def main() -> None:
    """One task: a side, opened and run once; prints the seconds of both, imports apart."""
    task: dict[str, Any] = json.load(sys.stdin)
    plan = codec.from_json(task["plan"])
    prepare = {OURS: _ours, DYNAMIC: _dynamic}.get(task["side"], _torch)
    ready = prepare(task, plan)  # imports
    start = time.perf_counter()
    picture = ready()
    opened = time.perf_counter()
    picture()
    made = time.perf_counter()
    print(json.dumps({"open": opened - start, "first": made - opened, "torch": "torch" in sys.modules}))


def _ours(task: dict[str, Any], plan: Plan) -> Callable[[], Picture]:
    import onnxruntime  # noqa: F401

    from nextscale.runtime import Pipeline
    from nextscale.runtime.backends.onnxruntime import OnnxRuntime

    ask = dict(task["ask"])
    labels = ask.pop("labels")

    def ready() -> Picture:
        backend = OnnxRuntime(threads=task["threads"], packed=True)
        pipeline = Pipeline.open(task["place"], backend, batch_sizes=(len(labels),))
        return lambda: pipeline.generate(labels, **ask)

    return ready


def _dynamic(task: dict[str, Any], plan: Plan) -> Callable[[], Picture]:
    from dynamic_session import DynamicSessions

    ask = dict(task["ask"])
    settings = ask["labels"], ask["seed"], ask["guidance_scale"], ask["top_p"], ask["temperature"]

    def ready() -> Picture:
        sessions = DynamicSessions(Path(task["place"]), plan, task["threads"])
        return lambda: sessions.run(*settings)

    return ready


def _torch(task: dict[str, Any], plan: Plan) -> Callable[[], Picture]:
    import torch

    from nextscale.compare.sides import Ask, Opener

    torch.set_num_threads(task["threads"])
    ask = Ask(**{**task["ask"], "labels": tuple(task["ask"]["labels"])})

    def ready() -> Picture:
        opener = Opener(Path(task["model"]), Path(task["vae"]), "cpu", task["threads"], 1, plan)
        side = open_side(task["side"], plan, None, opener)
        return lambda: side.run(ask)

    return ready


if __name__ == "__main__":
    main()
