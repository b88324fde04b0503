"""One pass through a chain: everything asked for at once, run step by step or whole, and what came of it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import InputError
from nextscale.plan.types import Plan
from nextscale.runtime.arrays import DeviceArray, array_of
from nextscale.runtime.buffers import IMAGE, KEYS, TOLD, requested
from nextscale.runtime.chain import Chain
from nextscale.runtime.decoding import Floats, decode_host, item_bytes, lend, settle, take
from nextscale.runtime.manifest import Graph, Tensor
from nextscale.runtime.request import Request
from nextscale.runtime.result import StepResult, Timing

log = logging.getLogger("nextscale.runtime")

_LENT = {"logits": "logits.out", "tokens": TOLD, "code_sum": "state.code_sum.out"}


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
                _read=self._reader(self._lease.serial, out),
            )

    def lend(self, out: object, total: int) -> int:
        """The address of this pass's pictures in a caller's array for the ``total`` of them."""
        return lend(out, "out", total, self._chain.image, self._chain) + self.first * item_bytes(self._chain.image)

    def finish(self, to: int | None) -> Floats | None:
        """The pictures (count, height, width, 3), after the last step.

        Where ``to`` is an address they go there instead, as (count, 3, height, width): straight from the graph, but
        where the batch was filled up.
        """
        with self._slot.lock:
            self._check()
            start = time.perf_counter()
            if to is None or self.count < self.images:
                self._chain.execute(self._chain.last, self.images)
            else:
                self._chain.decode(self._chain.last, self.images, {IMAGE: to})
            settle(self._chain, [self._chain.last], self.images)
            pictures = self._deliver(to)
            self.timings.append(Timing("decode", self.first, self.count, 0.0, time.perf_counter() - start))
            return pictures

    def picture(self, to: int | None) -> tuple[list[NDArray[np.int32]], Floats | None]:
        """The tokens of every step, and the pictures as :meth:`finish` gives them, run as a whole: the host does
        nothing between the first step and the last."""
        with self._slot.lock:
            self._check()
            chain, asked, start = self._chain, self._ask(), time.perf_counter()
            if to is None or self.count < self.images:
                chain.picture(self.images, decode=True)
            else:
                chain.picture(self.images, decode=False)
                chain.decode(chain.last, self.images, {IMAGE: to})
            settle(chain, [*chain.steps, chain.last], self.images)
            pictures = self._deliver(to)
            tokens = [self._slot.view(_output(g, TOLD), self.images)[: self.count].copy() for g in chain.steps]
            self.timings.append(Timing("picture", self.first, self.count, asked, time.perf_counter() - start))
            return tokens, pictures

    def stepwise(
        self, started: float, on_step: Callable[[StepResult], object] | None, to: int | None
    ) -> tuple[list[NDArray[np.int32]], Floats | None]:
        """The same for a host that follows every step, and shows it to ``on_step``."""
        tokens = []
        for step in self.run(started):
            if on_step is not None:
                on_step(step)
            tokens.append(step.tokens)
        return tokens, self.finish(to)

    def decode(self, code_sum: Floats) -> Floats:
        """Pictures (count, height, width, 3) of this pass's code sums, on the call's slot for as long as it has one."""
        with self._slot.lock:
            if self._lease.open:
                self._check()
                start = time.perf_counter()
                # The next step reads buffer done % 2 and writes the other, which is free until then.
                pictures = decode_host(self._chain, code_sum, self.images, self._lease.done + 1)
                seconds = time.perf_counter() - start
                self.timings.append(Timing("decode", self.first, self.count, 0.0, seconds))
                return pictures
        return self._late(code_sum)

    def _deliver(self, to: int | None) -> Floats | None:
        if to is None:
            return take(self._chain, self.images, self.count)
        if self.count < self.images:
            self._slot.send(self._chain.image, self.count, to)
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
        """Write what the caller owes all graphs of the pass: subjects, settings, forced tokens; returns the seconds."""
        start = time.perf_counter()
        for graph in (self._chain.begin, *self._chain.steps):
            for tensor in requested(graph):
                self._slot.write(tensor, self.images, self._value(tensor, graph))
        self._slot.view(KEYS, self.images)[...] = [(self._request.seed, image) for image in self._request.images]
        self._slot.push_requests()
        return time.perf_counter() - start

    def _value(self, tensor: Tensor, graph: Graph) -> Any:
        request, order = self._request, graph.step or 0
        if tensor.source in request.subjects.given:
            return request.subjects.given[tensor.source]
        match tensor.source:
            case "guidance":
                return request.guidance(self._plan, self._plan.steps[order])
            case "tokens":
                return request.tokens.get(order, -1)
            case "top_p":
                return request.top_p
            case _:
                return request.temperature

    def _reader(self, serial: int, out: Mapping[str, Tensor]) -> Callable[[str, bool], NDArray[Any] | DeviceArray]:
        """What reads a tensor of the step just done: a copy on the host, or the slot's own array."""

        def read(name: str, copy: bool) -> NDArray[Any] | DeviceArray:
            if name not in _LENT:
                raise InputError(f"a step has the arrays {', '.join(_LENT)}; found {name!r}")
            tensor, slot = out[_LENT[name]], self._slot
            with slot.lock:
                if not self._lease.open or self._lease.serial != serial:
                    raise InputError(f"{name} of a step are gone with the next one: read them before asking for it")
                if copy:
                    return slot.pull(tensor, self.images)[: self.count].copy()
                shape = (self.count, *slot.view(tensor, self.images).shape[1:])
                return array_of(slot.memory, slot.start(tensor, self.images), shape, tensor.dtype)

        return read


def _output(graph: Graph, name: str) -> Tensor:
    return next(tensor for tensor in graph.outputs if tensor.name == name)
