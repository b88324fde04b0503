"""A bundle between a program's own PyTorch tensors, without copies: pictures, code sums and logits where they lie.

    python examples/embed_torch.py engines/NAME                                           # on the CPU
    python examples/embed_torch.py engines/NAME --backend tensorrt-rtx --device cuda      # on a GPU

The same lines on either. Graphs write pictures straight into a tensor, and a step's code sum is read as a tensor; on a
GPU nothing of a picture passes through the host. CuPy and pycuda arrays go the same way (docs/cuda.md).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.utils.dlpack import from_dlpack

from nextscale.plan.errors import NextscaleError
from nextscale.runtime import Pipeline


def empty_pictures(pipeline: Pipeline, count: int, device: str) -> torch.Tensor:
    """(count, 3, height, width) float32 for pictures to be written to."""
    height, width = pipeline.manifest.plan.image_size
    return torch.empty(count, 3, height, width, device=device)


def pictures(pipeline: Pipeline, device: str) -> torch.Tensor:
    """``decode`` writes into our tensor; work that it still waits for on our stream is done first."""
    out = empty_pictures(pipeline, 2, device)
    result = pipeline.generate([0, 1], seed=7, out=out)
    print(f"{len(result)} pictures in {result.seconds * 1e3:.2f} ms, written to {out.device} at {out.data_ptr():#x}")
    return out


def blended(pipeline: Pipeline, device: str) -> torch.Tensor:
    """The code sums of two classes, halfway between them, decoded into a tensor of ours."""
    sums = [last_code_sum(pipeline, label) for label in (0, 1)]
    out = empty_pictures(pipeline, 1, device)
    pipeline.decode(torch.lerp(sums[0], sums[1], 0.5), out=out)
    print(f"half of class 0 and half of class 1: mean {out.mean().item():.3f}")
    return out


def last_code_sum(pipeline: Pipeline, label: int) -> torch.Tensor:
    """(1, channels, height, width) of a finished chain, ours: the slot's own changes with the next call."""
    for step in pipeline.stream(label, seed=7):
        code_sum = from_dlpack(step.array("code_sum"))  # the slot's memory itself, until the next step
        if step.last:
            ours = code_sum.clone()
            if ours.is_cuda:  # PyTorch reads in a stream of its own: done, before the slot is written again
                torch.cuda.current_stream().synchronize()
            return ours
    raise AssertionError("a chain has a last step")


def certainty(pipeline: Pipeline) -> list[float]:
    """The mean entropy, in bits, of what every step samples from, before temperature and filters."""
    found = []
    for step in pipeline.stream(1, seed=7):
        logits = from_dlpack(step.array("logits"))  # (1, tokens, vocabulary)
        shares = logits.softmax(-1)
        found.append(float(-(shares * shares.clamp_min(1e-30).log2()).sum(-1).mean()))
        print(f"step {step.index}: {found[-1]:.2f} bits a token")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs all of it; problems are told in one sentence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a folder that `nextscale export` made")
    parser.add_argument("--backend", default="onnxruntime", help="onnxruntime, tensorrt or tensorrt-rtx")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    options = parser.parse_args(arguments)
    try:
        # Batches of one and of two, as an engine may have been built for: `nextscale build --batch 1,2`.
        with Pipeline.open(options.bundle, options.backend, options.device, batch_sizes=(1, 2)) as pipeline:
            print(f"opened {pipeline.manifest.name}: {pipeline.memory}")
            pictures(pipeline, options.device)
            blended(pipeline, options.device)
            certainty(pipeline)
    except NextscaleError as error:
        print(f"nextscale: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
