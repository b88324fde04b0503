"""Embedding a bundle in a service: open once, then serve calls from any thread.

    python examples/embed.py engines/NAME --out out/

Shows what a service needs, one function each: pictures with their timings, a stream with previews, a call that its
client gives up, several calls at once, and what a refused request looks like. PyTorch is neither needed nor imported.
"""

from __future__ import annotations

import argparse
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from PIL import Image

from nextscale.plan.errors import InputError, NextscaleError
from nextscale.runtime import Pipeline, Result, StepResult
from nextscale.runtime.errors import Cancelled, PipelineTimeout


def serve(bundle: Path, out: Path) -> None:
    """Opens the bundle once, as a service does at its start, and makes every kind of call."""
    # Two slots: two calls run at once over one copy of the weights, a third waits for at most 5 s. Every file's hash is
    # checked; a service that has its own register of bundles also gives expect_sha256.
    with Pipeline.open(bundle, backend="onnxruntime", device="cpu", slots=2, wait=5.0) as pipeline:
        print(f"opened {pipeline.manifest.name}, {pipeline.bundle.digest[:12]}")
        print(f"memory: {pipeline.memory}")
        pictures(pipeline, out)
        previews(pipeline, out)
        given_up(pipeline)
        at_once(pipeline)
        refused(pipeline)


def pictures(pipeline: Pipeline, out: Path) -> Result:
    """One picture for each label. Seed and number fix a picture: its batch does not matter."""
    result = pipeline.generate([0, 1, None], seed=7, guidance_scale=[1.5, 3.0, 1.5], timeout=120.0)
    for path in result.save(out):  # PNGs that carry seed, settings, recipe and the bundle's hash
        print(path)
    for graph, seconds in result.step_seconds.items():
        print(f"  {graph:<8} {seconds * 1e3:7.2f} ms")
    print(f"  {len(result)} pictures in {result.seconds * 1e3:.2f} ms, seed {result.seed}")
    return result


def previews(pipeline: Pipeline, out: Path) -> None:
    """Step by step: a preview is decoded only where one is asked for; that of the last step is the picture."""
    for step in pipeline.stream(1, seed=7):
        height, width = step.grid
        print(f"scale {step.index} ({height} x {width}) after {step.elapsed * 1e3:.2f} ms")
        if step.last or step.index % 2 == 0:
            Image.fromarray(step.preview()[0]).save(out / f"preview-{step.index:02d}.png")


def given_up(pipeline: Pipeline) -> int:
    """A client goes away: its call ends before the next graph, and its slot is free. Returns the steps that ran."""
    gone, seen = Event(), 0

    def on_step(step: StepResult) -> None:
        nonlocal seen
        seen += 1
        if step.index == 1:
            gone.set()  # in a service: the connection's thread sets it

    try:
        pipeline.generate([0, 1], seed=8, cancel=gone, on_step=on_step)
    except Cancelled as error:
        print(f"after {seen} steps: {error}")
    stream = pipeline.stream(0, seed=8)
    next(stream)
    stream.close()  # leaving a loop over a stream early does the same
    return seen


def at_once(pipeline: Pipeline) -> list[Result]:
    """Calls from four threads over two slots: each waits for its turn."""
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(pipeline.generate, 0, seed=seed) for seed in range(4)]
        results = [call.result() for call in calls]
    print(f"{len(results)} calls at once, the slowest took {max(r.seconds for r in results) * 1e3:.2f} ms")
    return results


def refused(pipeline: Pipeline) -> None:
    """Every error a caller can meet is one sentence, and its class says what kind: the request, or the moment."""
    try:
        pipeline.generate(0, top_p=7.0)
    except InputError as error:  # a service answers: bad request
        print(f"refused: {error}")
    try:
        pipeline.generate(0, timeout=0.0)
    except PipelineTimeout as error:  # a service answers: try again later
        print(f"too late: {error}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What a service does with a bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--verbose", action="store_true", help="the runtime's own log")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if asked.verbose else logging.WARNING)
    try:
        serve(asked.bundle, asked.out)
    except NextscaleError as error:  # the base of every error, with the status that a command would exit with
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
