"""Makes, rewrites and loads a state dict of 200 MB, and prints how far each lifts the process's peak, in bytes.

Linux alone: it is asked for the peak since a moment, which ``getrusage`` does not know (that begins with the parent's).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from nextscale.export import safetensors_file
from nextscale.export.lazy import Lazy
from nextscale.export.state_dict import load_strictly, open_state
from nextscale.export.weights import write_weights

SIDE = 1024


def main(path: Path) -> None:
    """Prints the rises of all three; a small state dict goes first, so that all is imported."""
    for count in (1, 50):
        rises = [rise(partial(what, path, count)) for what in (make, rewrite, load)]
    sys.stdout.write(json.dumps(rises))


def make(path: Path, count: int) -> None:
    """Writes the file, safetensors tensor by tensor."""
    shape = torch.Size((SIDE, SIDE))
    lazy = {f"{i}.weight": Lazy(shape, torch.float32, lambda: torch.randn(shape)) for i in range(count)}
    if path.suffix == ".safetensors":
        safetensors_file.write(path, lazy)
    else:
        torch.save({key: tensor.read() for key, tensor in lazy.items()}, path)


def rewrite(path: Path, count: int) -> None:
    """Writes it as a bundle's weights, tensor by tensor."""
    folder = path.parent / str(count)
    folder.mkdir()
    write_weights({f"var/{key}": tensor for key, tensor in open_state(path, "var").items()}, folder)


def load(path: Path, count: int) -> None:
    """Reads all of it into a module."""
    with torch.device("meta"):
        module = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(count)))
    load_strictly(module, open_state(path, "var"), path, ())


def rise(run: Callable[[], None]) -> int:
    """By how much the peak while it runs is above what the process held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def status(name: str) -> int:
    """One of the kernel's numbers about the process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
