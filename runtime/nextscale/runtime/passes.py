"""One pass through a chain: everything asked for at once, run step by step or whole, and what came of it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import InputError
from nextscale.plan.types import Plan
from nextscale.runtime.buffers import IMAGE, KEYS, TOLD, requested
from nextscale.runtime.chain import Chain
from nextscale.runtime.manifest import Graph, Tensor
from nextscale.runtime.request import Request
from nextscale.runtime.result import StepResult, Timing

log = logging.getLogger("nextscale.runtime")

Floats = NDArray[np.float32]


@dataclasses.dataclass
class Lease:
    """A chain for the length of a call. ``done`` steps of the current pass, ``serial`` of all; both under its lock."""

    chain: Chain
    done: int = 0
    serial: int = 0
    open: bool = True

    def end(self) -> None:
        """From here on results of the call no longer read the slot."""
        with self.chain.slot.lock:
            self.open = False


class Pass:
    """One pass: the pictures of ``request`` in a batch of ``images``, filled up with copies of its last picture.

    ``first`` numbers its first picture within the call. ``check`` is called before every graph and raises to stop the
    pass. ``late`` decodes code sums once the call has given its slot back.
    """

    def __init__(
        self,
        plan: Plan,
        lease: Lease,
        request: Request,
        images: int,
        first: int,
        check: Callable[[], None],
        late: Callable[[Floats], Floats],
    ) -> None:
        self.count, self.first, self.images = len(request), first, images
        self.timings: list[Timing] = []
        self._plan, self._lease, self._chain, self._slot = plan, lease, lease.chain, lease.chain.slot
        self._check, self._late = check, late
        self._request = request.part([*range(self.count), *[self.count - 1] * (images - self.count)])

    def run(self, started: float) -> Iterator[StepResult]:
        """Every step's result; ``started`` is the call's own ``perf_counter``."""
        with self._slot.lock:
            self._lease.done = 0
            self._run(self._chain.begin, self._ask())
        for step, graph in zip(self._plan.steps, self._chain.steps, strict=True):
            out = {t.name: t for t in graph.outputs}
            with self._slot.lock:
                timing = self._run(graph)
                tokens = self._slot.view(out[TOLD], self.images)[: self.count].copy()
                code_sum = self._slot.pull(out["state.code_sum.out"], self.images)[: self.count].copy()
                self._lease.done, self._lease.serial = self._lease.done + 1, self._lease.serial + 1
            log.debug("%s of %d pictures: %.1f ms", graph.name, self.images, timing.seconds * 1e3)
            yield StepResult(
                index=step.order,
                scale=step.scale,
                grid=step.grid,
                first_image=self.first,
                images=self.count,
                tokens=tokens,
                code_sum=code_sum,
                elapsed=time.perf_counter() - started,
                timing=timing,
                last=step is self._plan.steps[-1],
                _decode=self.decode,
                _logits=self._logits_of(self._lease.serial, out["logits.out"]),
            )

    def finish(self, out: int | None) -> Floats | None:
        """The pictures (count, height, width, 3), after the last step; where ``out`` is an address, they go there
        instead, as (count, 3, height, width)."""
        with self._slot.lock:
            self._check()
            start = time.perf_counter()
            if out is None or self.count < self.images:
                self._chain.execute(self._chain.last, self.images)
            else:
                self._chain.decode(self._chain.last, self.images, {IMAGE: out})
            pictures = self._deliver(out)
            self.timings.append(Timing("decode", self.first, self.count, 0.0, time.perf_counter() - start))
            return pictures

    def picture(self, out: int | None) -> tuple[list[NDArray[np.int32]], Floats | None]:
        """The tokens of every step, and the pictures as :meth:`finish` gives them, run as a whole: the host does
        nothing between the first step and the last."""
        with self._slot.lock:
            self._check()
            chain, asked, start = self._chain, self._ask(), time.perf_counter()
            if out is None or self.count < self.images:
                chain.picture(self.images, decode=True)
            else:
                chain.picture(self.images, decode=False)
                chain.decode(chain.last, self.images, {IMAGE: out})
            pictures = self._deliver(out)
            tokens = [self._slot.view(_output(g, TOLD), self.images)[: self.count].copy() for g in chain.steps]
            self.timings.append(Timing("picture", self.first, self.count, asked, time.perf_counter() - start))
            return tokens, pictures

    def decode(self, code_sum: Floats) -> Floats:
        """Pictures (count, height, width, 3) of this pass's code sums, on the call's slot for as long as it has one."""
        with self._slot.lock:
            if self._lease.open:
                self._check()
                start = time.perf_counter()
                # The next step reads buffer done % 2 and writes the other, which is free until then.
                pictures = decode(self._chain, code_sum, self.images, self._lease.done + 1)
                seconds = time.perf_counter() - start
                self.timings.append(Timing("decode", self.first, self.count, 0.0, seconds))
                return pictures
        return self._late(code_sum)

    def _deliver(self, out: int | None) -> Floats | None:
        """What ``decode`` made, waited for and checked; moved to ``out`` where it could not be made there."""
        slot, image = self._slot, _output(self._chain.last, IMAGE)
        slot.pull_results()
        for graph in (*self._chain.steps, self._chain.last):  # the first that went wrong is the one to name
            self._chain.check(graph, self.images)
        if out is None:
            return _rows_of_pixels(slot.pull(image, self.images)[: self.count])
        if self.count < self.images:
            slot.send(image, self.count, out)
        return None

    def _run(self, graph: Graph, asked: float = 0.0) -> Timing:
        """One graph, waited for; what it flags raises."""
        self._check()
        start = time.perf_counter()
        drawn, _ = self._chain.execute(graph, self.images)
        if graph.step is not None:
            self._slot.pull_results()
            self._chain.check(graph, self.images)
        seconds = time.perf_counter() - start - drawn
        self.timings.append(Timing(graph.name, self.first, self.count, asked + drawn, seconds))
        return self.timings[-1]

    def _ask(self) -> float:
        """Write what the caller owes all graphs of the pass: labels, settings, forced tokens; returns the seconds."""
        start = time.perf_counter()
        for graph in (self._chain.begin, *self._chain.steps):
            for tensor in requested(graph):
                self._slot.view(tensor, self.images)[...] = self._value(tensor, graph)
        self._slot.view(KEYS, self.images)[...] = [(self._request.seed, image) for image in self._request.images]
        self._slot.push_requests()
        return time.perf_counter() - start

    def _value(self, tensor: Tensor, graph: Graph) -> Any:
        request, order = self._request, graph.step or 0
        match tensor.source:
            case "labels":
                return request.labels
            case "guidance":
                return request.guidance(self._plan, self._plan.steps[order])
            case "tokens":
                return request.tokens.get(order, -1)
            case "top_p":
                return request.top_p
            case _:
                return request.temperature

    def _logits_of(self, serial: int, logits: Tensor) -> Callable[[], Floats]:
        def read() -> Floats:
            with self._slot.lock:
                if not self._lease.open or self._lease.serial != serial:
                    raise InputError("logits are gone with the next step: read them before asking for it")
                return self._slot.pull(logits, self.images)[: self.count].copy()

        return read


def decode(chain: Chain, code_sum: Floats, images: int, turn: int) -> Floats:
    """Code sums (count, channels, height, width) to pictures (count, height, width, 3), in a batch of ``images``.

    They go through the code sum buffer number ``turn``, which must be free: the one that no step has yet to read.
    """
    graph, slot, count = chain.reading(turn), chain.slot, len(code_sum)
    filled = np.concatenate([code_sum, np.repeat(code_sum[-1:], images - count, axis=0)])
    slot.view(graph.inputs[0], images)[...] = filled
    slot.push(graph.inputs[0], images)
    slot.clear_flags()
    chain.execute(graph, images)
    slot.pull_results()
    chain.check(graph, images)
    return _rows_of_pixels(slot.pull(_output(graph, IMAGE), images)[:count])


def _rows_of_pixels(pictures: Floats) -> Floats:
    """(count, 3, height, width) as (count, height, width, 3)."""
    return np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))


def _output(graph: Graph, name: str) -> Tensor:
    return next(tensor for tensor in graph.outputs if tensor.name == name)
