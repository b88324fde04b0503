"""The process that :mod:`nextscale.compare.memory` starts: opens one side, makes one run, reports its own memory.

Reads its task as JSON from the standard input and writes its figures as JSON. Nothing is imported that the side does
not need: a bundle's process has no PyTorch.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nextscale.plan.errors import NextscaleError
from nextscale.runtime.memory import process_memory

EVERY = 0.005  # seconds between looks

Run = Callable[[], object]


def main() -> None:
    """One task in, one answer out: figures, or the exit status and the sentence of a refusal."""
    task = json.load(sys.stdin)
    prepare = _eager if task["bundle"] is None else _bundle
    try:
        answer: dict[str, Any] = {"memory": _watched(prepare(task))}
    except NextscaleError as error:
        answer = {"status": error.exit_status, "sentence": str(error)}
    sys.stdout.write(json.dumps(answer))


def _watched(work: Run) -> dict[str, Any] | None:
    """Runs ``work`` and says what memory the process had before, at most and after."""
    before = process_memory()
    if before is None:
        return _high_water(work)
    seen, done = [before.pss], threading.Event()

    def look() -> None:
        while not done.wait(EVERY):
            now = process_memory()
            if now is not None:
                seen.append(now.pss)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    held = work()
    done.set()
    watcher.join()
    after = process_memory()
    del held
    last = after.pss if after is not None else seen[-1]
    return {"before": before.pss, "peak": max(*seen, last), "after": last, "how": "Pss"}


def _high_water(work: Run) -> dict[str, Any] | None:
    """The same from the system's high-water mark, where it keeps one."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"before": before, "peak": peak, "after": None, "how": "peak RSS"}


def _eager(task: dict[str, Any]) -> Run:
    import torch

    from nextscale.export.bundle import prepared
    from nextscale.export.checkpoint import load_checkpoint
    from nextscale.export.eager import Request
    from nextscale.plan import codec

    torch.set_num_threads(task["threads"])
    plan, files = codec.from_json(task["plan"]), (Path(task["model"]), Path(task["vae"]))

    def work() -> object:
        eager = prepared(load_checkpoint(*files, plan.schedule), plan, task["precision"])
        code_sum = None
        for step in eager.stream(Request(task["labels"], task["seed"])):
            code_sum = step.prediction.code_sum
        return eager, None if code_sum is None else eager.decode(code_sum)

    return work


def _bundle(task: dict[str, Any]) -> Run:
    from nextscale.runtime.backends import make_backend
    from nextscale.runtime.pipeline import Pipeline

    engine = make_backend(task["backend"], task["device"], task["threads"])

    def work() -> object:
        pipeline = Pipeline.open(task["bundle"], engine, batch_sizes=(len(task["labels"]),))
        return pipeline, pipeline.generate(task["labels"], seed=task["seed"])

    return work


if __name__ == "__main__":
    main()
