"""The buffers of a deployment and who touches them when: from this come memory figures and the aliasing check.

Graphs are numbered as the steps are: ``begin`` is -1 and ``decode`` comes after the last step. Names and turns are
those of the graph signatures (``tape.var.k.07``, ``cache.attn.07``, ``cond.adaln.07``, ``state.map.1`` ...). A tape's
unit is a row, which is contiguous; everything else is read and written whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from nextscale.plan.conditioning import conditions, given, longest
from nextscale.plan.schedules import tokens
from nextscale.plan.types import Layer, Model, Plan, Step

BEGIN = -1


@dataclass(frozen=True)
class Buffer:
    """``rows`` rows of ``row_items`` items each, for one picture. ``dtype``: ``compute`` is the plan's precision.

    ``cause`` is what the memory report files it under.
    """

    name: str
    cause: str
    dtype: str
    rows: int
    row_items: int


@dataclass(frozen=True)
class Access:
    """A graph touches rows ``start .. start + length`` of a buffer.

    ``mode``: ``read``; ``append`` (beside what is there); ``replace`` (what is there is over); ``source`` (put there
    for this graph by the caller or by a row gather, before it runs).
    """

    graph: int
    buffer: str
    mode: str
    start: int = 0
    length: int = 1


def decode_graph(plan: Plan) -> int:
    """The number of the decode graph."""
    return len(plan.steps)


def buffers(plan: Plan) -> tuple[Buffer, ...]:
    """Every buffer of a plan, each once."""
    return (*_conditioning(plan), *_state(plan), *_tapes(plan), *_caches(plan), *_io(plan))


def tape_buffers(plan: Plan, tape_id: str) -> tuple[tuple[str, str], ...]:
    """The names of a tape's key and value buffers; an alternating tape has two such pairs, used by turns."""
    weight_set, _, layer = tape_id.rpartition(".")
    turns = (".0", ".1") if plan.tape(tape_id).alternating else ("",)
    return tuple((f"tape.{weight_set}.k.{layer}{turn}", f"tape.{weight_set}.v.{layer}{turn}") for turn in turns)


def _rows(plan: Plan, weight_set: str) -> int:
    """The most batch rows per picture that a weight set runs."""
    return max((step.rows for step in plan.steps if step.weight_set == weight_set), default=1)


def _images(plan: Plan) -> int:
    return max(step.images for step in plan.steps)


def _prefix(plan: Plan, weight_set: str) -> str:
    return f"{weight_set}." if len(plan.models) > 1 else ""


def _conditioning(plan: Plan) -> Iterator[Buffer]:
    """What ``begin`` makes once per picture and the steps of a weight set share."""
    for weight_set, model in plan.models:
        rows, name = _rows(plan, weight_set), f"cond.{_prefix(plan, weight_set)}"
        for made in conditions(model):
            yield Buffer(
                f"{name}{made.name}", "conditioning", made.dtype, 1, rows * math.prod(longest(made.shape, model))
            )


def _given(plan: Plan) -> tuple[Buffer, ...]:
    """What the caller hands to ``begin``, once for a picture: candidates and weight sets share it."""
    inputs = {each.name: (each, model) for _, model in plan.models for each in given(model)}
    return tuple(
        Buffer(each.name, "inputs and outputs", each.dtype, 1, math.prod(longest(each.shape, model)))
        for each, model in inputs.values()
    )


def _state(plan: Plan) -> Iterator[Buffer]:
    model, images = plan.models[0][1], _images(plan)
    sums = images * plan.tokenizer.code_channels * tokens(plan.code_grid)
    yield from (Buffer(f"state.code_sum.{turn}", "state", "float32", 1, sums) for turn in (0, 1))
    grids = [step.next_input.grid for step in plan.steps if step.next_input.grid]
    widest = max((tokens(grid) for grid in grids), default=1)
    yield from (Buffer(f"state.map.{t}", "state", "float32", 1, images * widest * model.code_channels) for t in (0, 1))
    hub = _hub_rows(plan)
    if hub:
        yield Buffer("state.maps", "state", "float32", hub, images * model.code_channels)
    if any(step.kind == "mask" for step in plan.steps):
        drawn = images * max(step.tokens_out for step in plan.steps) * math.prod(model.draws)
        yield from (Buffer(f"state.tokens.{turn}", "state", "int32", 1, drawn) for turn in (0, 1))
    if plan.gathers:
        largest = max((buffer.rows * buffer.row_items for buffer in _tapes(plan)), default=sums)
        yield Buffer("state.gather", "state", "compute", 1, largest)


def _hub_rows(plan: Plan) -> int:
    """Rows of the maps of all earlier scales, which a prefill step in the middle of the chain reads at once."""
    return max((step.tokens_in - 1 for step in plan.steps if step.order and step.kind == "prefill"), default=0)


def _tapes(plan: Plan) -> Iterator[Buffer]:
    for tape in plan.tapes:
        items = _rows(plan, tape.weight_set) * tape.heads * plan.model(tape.weight_set).head_dim
        for pair in tape_buffers(plan, tape.id):
            yield from (Buffer(name, "tapes", "compute", plan.tape_rows(tape.id), items) for name in pair)


def _caches(plan: Plan) -> Iterator[Buffer]:
    for cache in plan.caches:
        items = _rows(plan, cache.weight_set) * tokens(cache.grid) * plan.model(cache.weight_set).width
        yield Buffer(f"cache.{cache.id}", "restore caches", "compute", 1, items)


def _io(plan: Plan) -> Iterator[Buffer]:
    """Labels or text, noise and forced tokens in; logits, tokens and the picture out.

    Guidance and the like are a few bytes.
    """
    yield from _given(plan)
    model, images = plan.models[0][1], _images(plan)
    most = images * max(step.tokens_out for step in plan.steps)
    smooth = any(step.sampling and step.sampling.smooth for step in plan.steps)
    for name in ("noise", "noise.smooth", "logits") if smooth else ("noise", "logits"):
        yield Buffer(name, "inputs and outputs", "float32", 1, most * model.head_outputs)
    refined = images * max((step.tokens_out for step in plan.steps if step.diffusion), default=0)
    if refined and model.diffusion:
        uniforms = refined * model.diffusion.steps * model.code_channels
        yield Buffer("noise.diffusion", "inputs and outputs", "float32", 1, uniforms)
    for name in ("tokens.forced", "tokens"):
        yield Buffer(name, "inputs and outputs", "int32", 1, most * math.prod(model.draws))
    height, width = plan.image_size
    yield Buffer("image", "inputs and outputs", "float32", 1, images * 3 * height * width)


def accesses(plan: Plan) -> tuple[Access, ...]:
    """Everything that every graph touches, in the order of the graphs; within a graph sources, reads, then writes."""
    walk = _Walk(plan)
    walk.begin()
    for step in plan.steps:
        walk.step(step)
    walk.decode()
    order = {"source": 0, "read": 1, "append": 2, "replace": 2}
    return tuple(sorted(walk.found, key=lambda access: (access.graph, order[access.mode])))


def _noises(step: Step) -> Iterator[str]:
    """The uniforms that a sampling step reads."""
    yield "noise"
    if step.sampling and step.sampling.smooth:
        yield "noise.smooth"
    if step.diffusion:
        yield "noise.diffusion"


class _Walk:
    """Follows a plan through its steps, and remembers which of two buffers has the turn."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.found: list[Access] = []
        self.turn = {"state.map": 0, "state.code_sum": 0, "state.tokens": 0}
        self.before_mask = {step.order - 1 for step in plan.steps if step.kind == "mask"}
        self.tape_turn = {tape.id: 0 for tape in plan.tapes}
        self.hub_end = next((s.order for s in plan.steps if s.order and s.kind == "prefill"), 0)
        self.hub_rows = 0

    def add(self, graph: int, buffer: str, mode: str, start: int = 0, length: int = 1) -> None:
        self.found.append(Access(graph, buffer, mode, start, length))

    def begin(self) -> None:
        for buffer in _given(self.plan):
            self.add(BEGIN, buffer.name, "source")
            self.add(BEGIN, buffer.name, "read")
        for buffer in _conditioning(self.plan):
            self.add(BEGIN, buffer.name, "replace")
        for tape in self.plan.tapes:
            if tape.prefilled:
                for name in tape_buffers(self.plan, tape.id)[0]:
                    self.add(BEGIN, name, "replace", 0, tape.prefilled)

    def step(self, step: Step) -> None:
        graph, model = step.order, self.plan.model(step.weight_set)
        if any(gather.before == graph for gather in self.plan.gathers):
            self.add(graph, "state.gather", "source")
        self._conditions(step, model)
        self._input(step)
        if step.sampling:
            for name in ("tokens.forced", *_noises(step)):
                self.add(graph, name, "source")
                self.add(graph, name, "read")
            self.add(graph, "logits", "replace")
            self.add(graph, "tokens", "replace")
        for layer in step.layers:
            self._layer(step, layer)
        self._output(step)

    def _conditions(self, step: Step, model: Model) -> None:
        first = step is next(s for s in self.plan.steps if s.weight_set == step.weight_set)
        for made in conditions(model):
            if made.read_by(step, first):
                self.add(step.order, f"cond.{_prefix(self.plan, step.weight_set)}{made.name}", "read")

    def _input(self, step: Step) -> None:
        if step.order == 0:
            return
        if step.kind == "prefill":
            self.add(step.order, "state.maps", "read", 0, step.tokens_in - 1)
        elif step.order < self.hub_end:
            self.add(step.order, "state.maps", "read", self.hub_rows - step.tokens_in, step.tokens_in)
        else:
            self.add(step.order, f"state.map.{self.turn['state.map']}", "read")
        if step.kind == "mask":
            self.add(step.order, f"state.tokens.{self.turn['state.tokens']}", "read")

    def _output(self, step: Step) -> None:
        if step.order in self.before_mask:
            self.add(step.order, self._other("state.tokens"), "replace")
        rule, graph = step.next_input.rule, step.order
        if rule == "code_sum":
            if any(a.buffer.startswith("state.code_sum") for a in self.found):
                self.add(graph, f"state.code_sum.{self.turn['state.code_sum']}", "read")
            self.add(graph, self._other("state.code_sum"), "replace")
        elif rule == "last_codes" and step.next_input.grid is None:
            self.add(graph, self._other("state.code_sum"), "replace")
        if rule == "none" or step.next_input.grid is None:
            return
        if graph < self.hub_end:
            rows = tokens(step.next_input.grid)
            self.add(graph, "state.maps", "append", self.hub_rows, rows)
            self.hub_rows += rows
        else:
            self.add(graph, self._other("state.map"), "replace")

    def _other(self, state: str) -> str:
        self.turn[state] = 1 - self.turn[state]
        return f"{state}.{self.turn[state]}"

    def _layer(self, step: Step, layer: Layer) -> None:
        for segment in layer.past:
            for name in self._tape(segment.tape):
                self.add(step.order, name, "read", segment.start, segment.length)
        for sub in layer.sub_layers:
            if sub.cache:
                self.add(step.order, f"cache.{sub.cache}", "replace" if sub.kept is None else "read")
        for write in layer.writes:
            if write.mode == "replace" and self.plan.tape(write.tape).alternating:
                self.tape_turn[write.tape] = 1 - self.tape_turn[write.tape]
            for name in self._tape(write.tape):
                self.add(step.order, name, write.mode, write.start, write.length)

    def _tape(self, tape_id: str) -> tuple[str, str]:
        return tape_buffers(self.plan, tape_id)[self.tape_turn[tape_id]]

    def decode(self) -> None:
        self.add(decode_graph(self.plan), f"state.code_sum.{self.turn['state.code_sum']}", "read")
        self.add(decode_graph(self.plan), "image", "replace")
