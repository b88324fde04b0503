"""The process that :mod:`nextscale.compare.memory` starts: opens one side, makes one run, reports its own memory.

Reads its task as JSON from the standard input and writes its figures as JSON. Nothing is imported that the side does
not need: a bundle's process has no PyTorch.
"""

from __future__ import annotations

import json
import shutil
import subprocess
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
    prepare = _torch if task["bundle"] is None else _bundle
    taken = _on_the_gpu() if task["device"] == "cuda" else None
    try:
        held, memory = _watched(prepare(task))
        if memory is not None and taken is not None:
            memory["device"] = (_on_the_gpu() or taken) - taken
        del held
        answer: dict[str, Any] = {"memory": memory}
    except NextscaleError as error:
        answer = {"status": error.exit_status, "sentence": str(error)}
    sys.stdout.write(json.dumps(answer))


def _watched(work: Run) -> tuple[object, dict[str, Any] | None]:
    """Runs ``work``; what it holds, and what memory the process had before, at most and after."""
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
    last = after.pss if after is not None else seen[-1]
    return held, {"before": before.pss, "peak": max(*seen, last), "after": last, "how": "Pss"}


def _high_water(work: Run) -> tuple[object, dict[str, Any] | None]:
    """The same from the system's high-water mark, where it keeps one."""
    try:
        import resource
    except ImportError:
        return work(), None
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    held = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return held, {"before": before, "peak": peak, "after": None, "how": "peak RSS"}


def _on_the_gpu() -> int | None:
    """Bytes taken on the GPUs, by anyone; None where the driver's tool does not tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    query = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    asked = subprocess.run(query, capture_output=True, text=True, check=False)
    used = [int(line) for line in asked.stdout.split() if line.isdecimal()]
    return sum(used) * 2**20 if asked.returncode == 0 and used else None


def _torch(task: dict[str, Any]) -> Run:
    import torch

    from nextscale.compare.sides import Ask, Opener, Spec
    from nextscale.plan import codec

    torch.set_num_threads(task["threads"])
    plan, files = codec.from_json(task["plan"]), (Path(task["model"]), Path(task["vae"]))
    spec = Spec("", plan, task["precision"], column=task["column"])
    ask = Ask(tuple(task["labels"]), task["seed"], 1.5, 1.0, 1.0)

    def work() -> object:
        side = Opener(*files, task["device"], task["threads"], len(ask.labels), plan).open(spec)
        return side, side.run(ask)

    return work


def _bundle(task: dict[str, Any]) -> Run:
    from nextscale.compare.columns import open_backend
    from nextscale.compare.posed import posed
    from nextscale.runtime.pipeline import Pipeline

    engine = open_backend(task["column"], task["device"], task["threads"])

    def work() -> object:
        pipeline = Pipeline.open(task["bundle"], engine, batch_sizes=(len(task["labels"]),))
        return pipeline, pipeline.generate(posed(pipeline.manifest.plan.model(), task["labels"]), seed=task["seed"])

    return work


if __name__ == "__main__":
    main()
