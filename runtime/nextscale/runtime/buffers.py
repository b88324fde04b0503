"""A slot: the buffers of one chain of passes, in one block of memory that is allocated once.

Where every tensor of every graph lies follows from the manifest: an appended tape's past is the first rows of its
buffer and its new rows are the next slice, so handing tensors on between steps is arithmetic on addresses. What the
host writes before a pass lies together, and so does what it reads after one: each is moved by one copy.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.conditioning import TEXT
from nextscale.runtime.backends.base import Bound, Loaded
from nextscale.runtime.manifest import IMAGES, Graph, Tensor

ALIGNMENT = 256  # bytes; enough for every backend's loads
KEYS = Tensor("keys", "int64", (IMAGES, 2), "keys", 0, "read", "keys")  # what noise is made from: seed and number
IMAGE = "image.out"
FEATURES = "text.out"
CHECKED = (FEATURES, "logits.out", "state.code_sum.out", IMAGE)  # must be finite
TOLD = "tokens.out"  # what the host reads of every step

_SHOWN = ("features", "state.code_sum", "image", "logits")  # what the host may ask for beside
_OWN = ("guidance", "tokens")  # what the host writes for each step anew
_CAUSES = {
    "tape": "tapes",
    "cache": "restore caches",
    "features": "texts",
    "text": "texts",
    "negative": "texts",
    "cond": "conditions",
    "state": "state",
    "noise": "noise",
    "logits": "logits",
    "image": "pictures",
}


def unrolled(graphs: Iterable[Graph]) -> tuple[Graph, ...]:
    """The graphs, with a buffer for every step's own guidance, forced tokens and sampled tokens.

    So a whole picture is asked for before its first step, and told after its last. Nothing else of a chain shares
    those buffers.
    """

    def own(graph: Graph, tensor: Tensor) -> Tensor:
        if tensor.source not in _OWN and tensor.name != TOLD:
            return tensor
        return dataclasses.replace(tensor, buffer=f"{tensor.buffer}.{graph.name}")

    return tuple(
        dataclasses.replace(
            graph,
            inputs=tuple(own(graph, tensor) for tensor in graph.inputs),
            outputs=tuple(own(graph, tensor) for tensor in graph.outputs),
        )
        for graph in graphs
    )


def for_text(graphs: Iterable[Graph], tokens: int) -> tuple[Graph, ...]:
    """The graphs for texts of that length: the number in the place of the symbol ``text``, wherever it stands."""

    def fixed(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(dataclasses.replace(t, shape=tuple(tokens if d == TEXT else d for d in t.shape)) for t in tensors)

    return tuple(dataclasses.replace(g, inputs=fixed(g.inputs), outputs=fixed(g.outputs)) for g in graphs)


def requested(graph: Graph) -> Iterator[Tensor]:
    """What the host writes for a graph before a pass; noise is made where the graph runs."""
    return (tensor for tensor in graph.inputs if tensor.source is not None and not is_noise(tensor))


def is_noise(tensor: Tensor) -> bool:
    """Whether an input is drawn from the keys: ``uniforms.<stream>``."""
    return (tensor.source or "").startswith("uniforms.")


def flags(graph: Graph, tensor: Tensor) -> Tensor:
    """For each picture whether an output held NaN or infinity, (images,) int32."""
    name = f"flags.{graph.name}.{tensor.name}"
    return Tensor(name, "int32", (IMAGES,), name, 0, "replace")


@dataclass(frozen=True)
class Layout:
    """Start and length in bytes of every buffer, for passes of up to ``images`` pictures.

    ``requests`` and ``results`` (first byte, bytes) are what moves to the device before a pass and back after it;
    ``flags`` belong to both. The host looks at nothing behind the first ``visible`` bytes.
    """

    images: int
    places: Mapping[str, tuple[int, int]]
    requests: tuple[int, int]
    flags: tuple[int, int]
    results: tuple[int, int]
    visible: int

    @property
    def size(self) -> int:
        """Bytes of the whole block."""
        return max((start + length for start, length in self.places.values()), default=0)

    def by_cause(self) -> dict[str, int]:
        """Bytes by what they are for: tapes, restore caches, state, ..."""
        causes: dict[str, int] = {}
        for name, (_, length) in self.places.items():
            cause = _CAUSES.get(name.partition(".")[0], "requests and results")
            causes[cause] = causes.get(cause, 0) + length
        return causes


def layout(graphs: Sequence[Graph], guidance_rows: int, images: int) -> Layout:
    """Every buffer of the unrolled graphs side by side; a buffer is as long as the furthest tensor on it."""
    asked = _lengths([KEYS, *(t for g in graphs for t in requested(g))], images, guidance_rows)
    marks = _lengths([flags(g, t) for g in graphs for t in g.outputs if t.name in CHECKED], images, guidance_rows)
    told = _lengths([t for g in graphs for t in g.outputs if t.name == TOLD], images, guidance_rows)
    rest = _lengths([t for g in graphs for t in (*g.inputs, *g.outputs)], images, guidance_rows)
    shown = {name: length for name, length in rest.items() if name.startswith(_SHOWN)}
    places: dict[str, tuple[int, int]] = {}
    start, ends = 0, []
    for lengths in (asked, marks, told, shown, rest):
        for name, length in lengths.items():
            if name not in places:
                places[name] = (start, length)
                start += -(-length // ALIGNMENT) * ALIGNMENT
        ends.append(start)
    return Layout(
        images,
        places,
        requests=(0, ends[1]),
        flags=(ends[0], ends[1] - ends[0]),
        results=(ends[0], ends[2] - ends[0]),
        visible=ends[3],
    )


class Slot:
    """Buffers for one pass at a time.

    ``lock`` is held by whoever runs a graph on them: a pass and a preview may be asked for from two threads.
    """

    def __init__(self, graphs: Sequence[Graph], guidance_rows: int, loaded: Loaded, images: int) -> None:
        self.layout = layout(graphs, guidance_rows, images)
        self.lock = threading.RLock()
        self.memory = loaded.allocate(self.layout.size, self.layout.visible)
        self._rows = guidance_rows

    def view(self, tensor: Tensor, images: int) -> NDArray[Any]:
        """The host's array of a tensor, for a pass of so many pictures."""
        return self.memory.view(self.start(tensor, images), tensor.concrete(images, self._rows), tensor.dtype)

    def write(self, tensor: Tensor, images: int, values: Any) -> None:
        """Put what the host gives into a tensor's array; of a text that is padded further, the tokens that it takes."""
        view = self.view(tensor, images)
        view[...] = values[tuple(map(slice, view.shape))] if isinstance(values, np.ndarray) else values

    def push(self, tensor: Tensor, images: int) -> None:
        """Bring a tensor that the host wrote to the device."""
        self.memory.push(self.start(tensor, images), tensor.span(images, self._rows)[1])

    def pull(self, tensor: Tensor, images: int) -> NDArray[Any]:
        """The host's array of a tensor that graphs wrote, up to date; it changes with the next pass."""
        self.memory.pull(self.start(tensor, images), tensor.span(images, self._rows)[1])
        return self.view(tensor, images)

    def push_requests(self) -> None:
        """Bring all that the host wrote for a pass to the device, with the flags cleared."""
        self._clear()
        self.memory.push(*self.layout.requests)

    def clear_flags(self) -> None:
        """Clear what an earlier pass may have flagged."""
        self._clear()
        self.memory.push(*self.layout.flags)

    def pull_results(self) -> None:
        """Bring flags and sampled tokens to the host; waits for all work that was asked for."""
        self.memory.pull(*self.layout.results)

    def send(self, tensor: Tensor, count: int, address: int) -> None:
        """The first ``count`` pictures of a tensor that graphs wrote to a caller's own memory, waited for."""
        self.memory.copy(self.start(tensor, count), tensor.span(count, self._rows)[1], address)
        self.memory.wait()

    def bound(self, tensor: Tensor, images: int) -> Bound:
        """Where a graph finds a tensor."""
        shape = tensor.concrete(images, self._rows)
        return Bound(tensor.name, tensor.dtype, shape, self.memory.address + self.start(tensor, images))

    def _clear(self) -> None:
        start, size = self.layout.flags
        self.memory.view(start, (size,), "uint8")[...] = 0

    def start(self, tensor: Tensor, images: int) -> int:
        """A tensor's first byte in the slot's memory."""
        return self.layout.places[tensor.buffer][0] + tensor.span(images, self._rows)[0]


def _lengths(tensors: Iterable[Tensor], images: int, guidance_rows: int) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for tensor in tensors:
        start, length = tensor.span(images, guidance_rows)
        lengths[tensor.buffer] = max(lengths.get(tensor.buffer, 0), start + length)
    return lengths
