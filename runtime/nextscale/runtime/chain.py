"""A bundle's graphs on the buffers of one slot: each with its noise before it and a look at what it made after it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np

from nextscale.runtime.backends.base import Bound, Call, Loaded
from nextscale.runtime.buffers import CHECKED, IMAGE, KEYS, Slot, flags, for_text, is_noise, requested
from nextscale.runtime.errors import NonFiniteError
from nextscale.runtime.manifest import Graph
from nextscale.runtime.ranges import span

_PICTURE = "picture"
_PLAIN = {"labels": 0, "tokens": -1}  # of a request that is run for its own sake; settings, texts and lengths are 1
_MOST_LENT = 8  # calls bound to a caller's own arrays that a slot remembers


class Link:
    """One graph, bound: its noise, itself, and the looks for NaN and infinity in what it made."""

    def __init__(self, name: str, noise: Sequence[Call], run: Sequence[Call]) -> None:
        self.name, self.calls = name, (*noise, *run)
        self._noise, self._run = tuple(noise), tuple(run)

    def execute(self) -> tuple[float, float]:
        """Ask for it; returns the seconds that the host spent on noise and on the rest."""
        start = time.perf_counter()
        for call in self._noise:
            call.execute()
        drawn = time.perf_counter()
        with span(self.name):
            for call in self._run:
                call.execute()
        return drawn - start, time.perf_counter() - drawn


class Chains:
    """The chains of one slot: the same graphs, for texts of every length that the backend has them for."""

    def __init__(
        self, graphs: Sequence[Graph], loaded: Loaded, slot: Slot, replays: bool, batch_sizes: Sequence[int]
    ) -> None:
        self.slot = slot
        self._by_text = {
            tokens: Chain(for_text(graphs, tokens), loaded, slot, replays, batch_sizes)
            for tokens in sorted(loaded.text_lengths)
        }

    def fitting(self, tokens: int) -> Chain:
        """The chain for the shortest text of ``tokens`` or more; the longest is asked for no more than it takes."""
        return self._by_text[min((n for n in self._by_text if n >= tokens), default=max(self._by_text))]


class Chain:
    """All graphs on one slot. Where the backend ``replays``, they run captured: the whole picture, and each by itself.

    ``graphs`` are unrolled, and for texts of one length. What is captured is bound, run and captured now for all of
    ``batch_sizes``, so that nothing is taken later. Whoever calls holds the slot's lock.
    """

    def __init__(
        self, graphs: Sequence[Graph], loaded: Loaded, slot: Slot, replays: bool, batch_sizes: Sequence[int]
    ) -> None:
        self.slot = slot
        self.begin, self.last = (next(g for g in graphs if g.name == name) for name in ("begin", "decode"))
        self.text = next((g for g in graphs if g.name == "text"), None)  # run by itself, before a pass
        self.steps = tuple(sorted((g for g in graphs if g.step is not None), key=lambda g: g.step or 0))
        self.image = next(tensor for tensor in self.last.outputs if tensor.name == IMAGE)
        self._loaded = loaded
        self._links: dict[tuple[object, ...], Link] = {}
        self._lent: dict[tuple[object, ...], Link] = {}
        self._captured: dict[tuple[object, ...], Call] = {}
        for images in batch_sizes if replays else ():
            self._warm(images)

    def reading(self, turn: int) -> Graph:
        """``decode`` on the code sum buffer number ``turn``; ``last`` is that of the last step's."""
        source = dataclasses.replace(self.last.inputs[0], buffer=f"state.code_sum.{turn % 2}")
        return dataclasses.replace(self.last, inputs=(source,))

    def execute(self, graph: Graph, images: int) -> tuple[float, float]:
        """One graph on the slot's buffers; returns the host's seconds on noise and on the rest."""
        captured = self._captured.get((*_key(graph), images))
        if captured is None:
            return self._link(graph, images).execute()
        start = time.perf_counter()
        with span(graph.name):
            captured.execute()
        return 0.0, time.perf_counter() - start

    def picture(self, images: int, decode: bool) -> None:
        """The whole pass, ``decode`` included or not, with nothing of the host in between."""
        captured = self._captured.get((_PICTURE, images)) if decode else None
        with span(_PICTURE):
            if captured is not None:
                captured.execute()
                return
            for graph in (self.begin, *self.steps, *([self.last] if decode else [])):
                self.execute(graph, images)

    def decode(self, graph: Graph, images: int, given: Mapping[str, int]) -> None:
        """``decode`` with the tensors of ``given`` at those addresses, a caller's own."""
        key = (*_key(graph), images, *sorted(given.items()))
        link = self._lent.pop(key, None) or self._bind(graph, images, given)
        while len(self._lent) >= _MOST_LENT:
            del self._lent[next(iter(self._lent))]  # unused for longest
        self._lent[key] = link
        link.execute()

    def check(self, graph: Graph, images: int) -> None:
        """Raise :class:`NonFiniteError` where a graph flagged NaN or infinity; its flags have been pulled."""
        for tensor in graph.outputs:
            if tensor.name not in CHECKED:
                continue
            pictures = np.flatnonzero(self.slot.view(flags(graph, tensor), images)).tolist()
            if pictures:
                raise NonFiniteError(
                    f"{tensor.name} of {graph.name} holds NaN or infinity for the pictures {pictures} of the pass: the "
                    "weights are broken or the precision is too low; check the checkpoint and export the bundle again"
                )

    def _link(self, graph: Graph, images: int) -> Link:
        key = (*_key(graph), images)
        if key not in self._links:
            self._links[key] = self._bind(graph, images, {})
        return self._links[key]

    def _warm(self, images: int) -> None:
        """Run all graphs once on a plain request, whatever comes of it, and capture them: together, and one by one."""
        for graph in (self.begin, *self.steps):
            for tensor in requested(graph):
                self.slot.view(tensor, images)[...] = _PLAIN.get(tensor.source or "", 1)
        self.slot.view(KEYS, images)[...] = 0
        self.slot.push_requests()
        links = {
            graph: self._link(graph, images) for graph in (self.begin, *self.steps, self.reading(0), self.reading(1))
        }
        for link in links.values():
            link.execute()
        self.slot.memory.wait()
        together = [call for graph in (self.begin, *self.steps, self.last) for call in links[graph].calls]
        self._captured[_PICTURE, images] = self._loaded.capture(self.slot.memory, together)
        for graph, link in links.items():
            self._captured[(*_key(graph), images)] = self._loaded.capture(self.slot.memory, link.calls)
        self.slot.memory.wait()

    def _bind(self, graph: Graph, images: int, given: Mapping[str, int]) -> Link:
        loaded, slot = self._loaded, self.slot

        def place(bound: Bound) -> Bound:
            return dataclasses.replace(bound, address=given.get(bound.name, bound.address))

        inputs = {t.name: place(slot.bound(t, images)) for t in graph.inputs}
        outputs = {t.name: place(slot.bound(t, images)) for t in graph.outputs}
        keys = slot.bound(KEYS, images)
        noise = [
            loaded.uniforms(slot.memory, keys, inputs[t.name], graph.step or 0, int(t.source.partition(".")[2]))
            for t in graph.inputs
            if t.source is not None and is_noise(t)
        ]
        run = loaded.prepare(slot.memory, graph.name, list(inputs.values()), list(outputs.values()))
        looks = [
            loaded.flag_nonfinite(slot.memory, outputs[t.name], slot.bound(flags(graph, t), images))
            for t in graph.outputs
            if t.name in CHECKED
        ]
        return Link(graph.name, noise, [run, *looks])


def _key(graph: Graph) -> tuple[object, ...]:
    """What tells a graph's bindings apart: ``decode`` may read either buffer of the code sum."""
    return graph.name, graph.inputs[0].buffer
