"""A slot: the buffers of one chain of passes, in one block of memory that is allocated once.

Where every tensor of every graph lies follows from the manifest: an appended tape's past is the first rows of its
buffer and its new rows are the next slice, so handing tensors on between steps is arithmetic on addresses.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from nextscale.runtime.backends.base import Backend, Bound, Call, Executable
from nextscale.runtime.manifest import Graph, Manifest, Tensor

ALIGNMENT = 256  # bytes; enough for every backend's loads

_CAUSES = {
    "tape": "tapes",
    "cache": "restore caches",
    "cond": "conditions",
    "state": "state",
    "noise": "noise",
    "logits": "logits",
    "image": "pictures",
}


@dataclass(frozen=True)
class Layout:
    """Start and length in bytes of every buffer, for passes of up to ``images`` pictures."""

    images: int
    places: Mapping[str, tuple[int, int]]

    @property
    def size(self) -> int:
        """Bytes of the whole block."""
        return max((start + length for start, length in self.places.values()), default=0)

    def by_cause(self) -> dict[str, int]:
        """Bytes by what they are for: tapes, restore caches, state, ..."""
        causes: dict[str, int] = {}
        for name, (_, length) in self.places.items():
            cause = _CAUSES.get(name.partition(".")[0], "requests")
            causes[cause] = causes.get(cause, 0) + length
        return causes


def layout(manifest: Manifest, images: int) -> Layout:
    """Every buffer of the manifest side by side; a buffer is as long as the furthest tensor on it."""
    lengths: dict[str, int] = {}
    for tensor in _tensors(manifest.graphs):
        start, length = tensor.span(images, manifest.guidance_rows)
        lengths[tensor.buffer] = max(lengths.get(tensor.buffer, 0), start + length)
    places, start = {}, 0
    for name, length in lengths.items():
        places[name] = (start, length)
        start += -(-length // ALIGNMENT) * ALIGNMENT
    return Layout(images, places)


class Slot:
    """Buffers for one pass at a time, and the calls that are bound to them.

    ``lock`` is held by whoever runs a graph on it: a pass and a preview may be asked for from two threads.
    """

    def __init__(self, manifest: Manifest, backend: Backend, images: int) -> None:
        self.layout = layout(manifest, images)
        self.lock = threading.RLock()
        self._rows = manifest.guidance_rows
        self._memory = backend.allocate(self.layout.size)
        self._calls: dict[tuple[str, int, str | None], Call] = {}

    def view(self, tensor: Tensor, images: int) -> NDArray[Any]:
        """The host's array of a tensor, for a pass of so many pictures."""
        return self._memory.view(self._start(tensor, images), tensor.concrete(images, self._rows), tensor.dtype)

    def push(self, tensor: Tensor, images: int) -> None:
        """Bring a tensor that the host wrote to the device."""
        self._memory.push(self._start(tensor, images), tensor.span(images, self._rows)[1])

    def pull(self, tensor: Tensor, images: int) -> NDArray[Any]:
        """The host's array of a tensor that graphs wrote, up to date; it changes with the next pass."""
        self._memory.pull(self._start(tensor, images), tensor.span(images, self._rows)[1])
        return self.view(tensor, images)

    def bound(self, tensor: Tensor, images: int) -> Bound:
        """Where a graph finds a tensor."""
        shape = tensor.concrete(images, self._rows)
        return Bound(tensor.name, tensor.dtype, shape, self._memory.address + self._start(tensor, images))

    def call(self, graph: Graph, executable: Executable, images: int) -> Call:
        """The graph bound to this slot's buffers; made once for each number of pictures."""
        key = (graph.name, images, graph.inputs[0].buffer)
        if key not in self._calls:
            self._calls[key] = executable.prepare(
                [self.bound(t, images) for t in graph.inputs], [self.bound(t, images) for t in graph.outputs]
            )
        return self._calls[key]

    def _start(self, tensor: Tensor, images: int) -> int:
        return self.layout.places[tensor.buffer][0] + tensor.span(images, self._rows)[0]


def _tensors(graphs: Iterable[Graph]) -> Iterable[Tensor]:
    for graph in graphs:
        yield from graph.inputs
        yield from graph.outputs
