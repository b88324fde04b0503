"""The ScatterRestore kernel on a GPU: its time beside that of copying as many bytes, measured by turns.

Several sets of buffers, larger together than any L2 cache, are worked through in one captured graph, so neither what a
launch costs the host nor what an earlier launch left in the cache is in a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from nextscale.compare.latency import Times, times
from nextscale.plan.resize import area_matrix
from nextscale.plugins import kernel
from nextscale.plugins.signature import INPUTS
from nextscale.runtime.backends.cuda import Captured, Device, Stream
from nextscale.runtime.backends.device import host_array
from nextscale.runtime.backends.nvrtc import compile_ptx

ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
ALIGNMENT = 256
WORKING_SET = 512 * 2**20  # bytes, more than four of the largest L2 caches
WARM_UPS = 3

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Size:
    """A sub-layer's end: ``rows`` of ``kept`` tokens for a grid, the others from a cache grid, ``width`` channels."""

    name: str
    grid: tuple[int, int]
    cache_grid: tuple[int, int]
    kept: int
    width: int
    rows: int = 2

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the six inputs."""
        (h, w), (hc, wc) = self.grid, self.cache_grid
        return {
            "kept": (self.rows, self.kept, self.width),
            "index": (self.rows, self.kept),
            "cache": (self.rows, hc * wc, self.width),
            "residual": (self.rows, h * w, self.width),
            "row_matrix": (h, hc),
            "column_matrix": (w, wc),
        }

    def lengths(self, part: str, full: str) -> dict[str, int]:
        """Bytes of the six inputs and the result."""
        items = {"kept": ITEM_SIZES[part], "cache": ITEM_SIZES[part], "residual": ITEM_SIZES[full]}
        found = {name: items.get(name, 4) * int(np.prod(shape)) for name, shape in self.shapes.items()}
        return found | {"result": found["residual"]}

    def moved(self, part: str, full: str) -> int:
        """Bytes that have to be read or written at least: every input and the result once."""
        return sum(self.lengths(part, full).values())


# One guided picture: FastVAR's settings of Infinity-2B and HART at 1024 px (fact sheet, 4.2; 64x64 is what Infinity
# skips), and those of the recipe for VAR-d36 at 512 px.
SIZES = (
    Size("infinity-2b 1024 px, 40x40", (40, 40), (24, 24), 800, 2048),
    Size("infinity-2b 1024 px, 64x64", (64, 64), (24, 24), 1024, 2048),
    Size("hart 1024 px, 64x64", (64, 64), (36, 36), 1024, 1536),
    Size("var-d36 512 px, 32x32", (32, 32), (24, 24), 512, 2304),
)


@dataclass(frozen=True)
class Speed:
    """Seconds of one launch and of copying as many bytes; ``share`` is the launch's part of the copy's bandwidth."""

    size: Size
    part: str
    full: str
    moved: int
    kernel: Times
    copy: Times

    @property
    def share(self) -> float:
        return self.copy.median / self.kernel.median


class Buffers:
    """One set of drawn inputs and a result in a block of a device's memory."""

    def __init__(self, device: Device, stream: Stream, size: Size, part: str, full: str, seed: int) -> None:
        lengths = size.lengths(part, full)
        *starts, total = accumulate((-(-n // ALIGNMENT) * ALIGNMENT for n in lengths.values()), initial=0)
        self.block = device.allocate(total)
        self.addresses = {name: self.block.address + start for name, start in zip(lengths, starts, strict=True)}
        staging = device.pin(total)
        for name, values in drawn(size, part, full, seed).items():
            start = self.addresses[name] - self.block.address
            host_array(staging)[start : start + values.size] = values
        stream.upload(self.block.address, staging.address, total)
        stream.wait()
        staging.free()


def drawn(size: Size, part: str, full: str, seed: int) -> dict[str, Bytes]:
    """The six inputs as bytes: values between -1 and 1, and kept tokens in ascending order."""
    random = np.random.default_rng(seed)
    n = size.grid[0] * size.grid[1]
    index = [np.sort(random.permutation(n)[: size.kept]) for _ in range(size.rows)]
    matrices = [area_matrix(a, b) for a, b in zip(size.cache_grid, size.grid, strict=True)]
    inputs: dict[str, NDArray[np.generic]] = {"index": np.stack(index).astype(np.int32)}
    inputs |= {"row_matrix": matrices[0], "column_matrix": matrices[1]}
    for name, dtype in (("kept", part), ("cache", part), ("residual", full)):
        values = random.uniform(-1, 1, size.shapes[name]).astype(np.float32)
        inputs[name] = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values.astype(dtype)
    return {name: np.ascontiguousarray(inputs[name]).reshape(-1).view(np.uint8) for name in INPUTS}


def loaded(device: Device, part: str, full: str) -> object:
    """The kernel for those dtypes on a device."""
    ptx = compile_ptx(kernel.source(), kernel.FILE, kernel.ARCHITECTURE, kernel.options(part, full))
    return device.kernels(ptx, kernel.FILE)(kernel.KERNEL)


def launch(stream: Stream, function: object, size: Size, addresses: Mapping[str, int]) -> None:
    """Ask for one launch."""
    asked = kernel.launch(size.shapes, addresses)
    stream.launch(function, asked.grid, asked.block, asked.arguments)


def measure(device: Device, size: Size, part: str, full: str, runs: int = 30, working_set: int = WORKING_SET) -> Speed:
    """Times on a device, for kept and cache of dtype ``part``, residual and result of dtype ``full``.

    Takes twice ``working_set`` bytes of the device, at least two sets of buffers. Raises
    :class:`~nextscale.runtime.errors.BackendError` where there is too little, or no compiler.
    """
    stream, function = device.stream(), loaded(device, part, full)
    moved = size.moved(part, full)
    sets = [Buffers(device, stream, size, part, full, seed) for seed in range(max(2, -(-working_set // moved)))]
    half = moved // 2  # what a copy of it reads and writes is moved
    pairs = [(device.allocate(half), device.allocate(half)) for _ in sets]
    launches = [partial(launch, stream, function, size, buffers.addresses) for buffers in sets]
    copies = [partial(stream.copy, target.address, source.address, half) for source, target in pairs]
    graphs = [_captured(stream, work) for work in (launches, copies)]
    seconds = by_turns(stream, [partial(graph.launch, stream) for graph in graphs], runs)
    for block in (*(buffers.block for buffers in sets), *(block for pair in pairs for block in pair)):
        block.free()
    taken = [times([total / len(sets) for total in totals]) for totals in seconds]
    return Speed(size, part, full, moved, *taken)


def by_turns(stream: Stream, works: Sequence[Callable[[], None]], runs: int) -> list[list[float]]:
    """Seconds of every work in every run, of which some go before to warm up; waits only at the end."""
    marks = []
    for _ in range(WARM_UPS + runs):
        marks.append([stream.mark()])
        for work in works:
            work()
            marks[-1].append(stream.mark())
    stream.wait()
    return [[stream.seconds(run[i], run[i + 1]) for run in marks[WARM_UPS:]] for i in range(len(works))]


def _captured(stream: Stream, works: Sequence[Callable[[], None]]) -> Captured.Graph:
    with stream.capture() as captured:
        for work in works:
            work()
    if captured.graph is None:  # it has one once the capture is over
        raise RuntimeError("a capture ended without its graph")
    return captured.graph
