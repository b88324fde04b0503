"""What methods share: changing what runs, then setting tapes, caches and the chain right again.

A method decides which layers, tokens and steps run. These functions carry the consequences through the plan, so that
methods compose: none has to know which others came before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from nextscale.plan.errors import PlanError
from nextscale.plan.types import Layer, Plan, RowGather, Segment, Step, TapeWrite


def computed_tokens(step: Step, layer: Layer) -> int:
    """Tokens whose keys and values a layer computes: those that its first sub-layer, self-attention, keeps."""
    kept = layer.sub_layers[0].kept if layer.sub_layers else None
    return step.tokens_in if kept is None else kept


def map_layers(plan: Plan, change: Callable[[Step, Layer], Layer | None]) -> Plan:
    """The plan with every layer of every step changed, or left out where ``change`` returns None."""
    steps = []
    for step in plan.steps:
        changed = (change(step, layer) for layer in step.layers)
        steps.append(replace(step, layers=tuple(layer for layer in changed if layer is not None)))
    return replace(plan, steps=tuple(steps))


def retape(plan: Plan, rows: Callable[[Step, Layer], int] = computed_tokens) -> Plan:
    """The plan after its writes changed length: ``rows`` says how many tokens each layer leaves on its tapes now.

    Writes are cut to that, later rows move up, and segments follow. A replacing write keeps its budget, or what there
    is to keep if that is less. Raises :class:`PlanError` where a segment ends inside the rows of a single write.
    """
    tapes = {tape.id: _Moved(tape.id, tape.prefilled) for tape in plan.tapes}

    def follow(step: Step, layer: Layer) -> Layer:
        past = tuple(tapes[segment.tape].segment(segment) for segment in layer.past)
        past = tuple(segment for segment in past if segment.length)
        available = {segment.tape: segment.length for segment in past}
        left = rows(step, layer)
        writes = tuple(tapes[write.tape].write(write, left, available.get(write.tape, 0)) for write in layer.writes)
        return replace(layer, past=past, writes=tuple(write for write in writes if write.length))

    return map_layers(plan, follow)


class _Moved:
    """Where a tape's row boundaries went: only the borders of what was written whole can be followed."""

    def __init__(self, tape: str, prefilled: int) -> None:
        self.tape = tape
        self.fixed = prefilled  # rows below this never move
        self.boundaries = {0: 0, prefilled: prefilled}

    def _at(self, boundary: int) -> int:
        if boundary <= self.fixed:
            return boundary
        if boundary not in self.boundaries:
            raise PlanError(f"tape {self.tape!r} is read up to row {boundary}, inside the rows of a single write")
        return self.boundaries[boundary]

    def segment(self, old: Segment) -> Segment:
        start = self._at(old.start)
        return replace(old, start=start, length=self._at(old.start + old.length) - start)

    def write(self, old: TapeWrite, rows: int, past: int) -> TapeWrite:
        if old.mode == "append":
            new = replace(old, start=self._at(old.start), length=rows)
            self.boundaries[old.start + old.length] = new.start + new.length
            return new
        if rows:
            new = replace(old, length=min(old.length, past + rows))
        else:  # the layer does not run: the tape holds what it held
            new = replace(old, length=0)
        held = new.length or max(self.boundaries.values())
        self.fixed, self.boundaries = 0, {0: 0, old.length: held}
        return new


def drop_steps(plan: Plan, dropped: Collection[int]) -> Plan:
    """The plan without the steps of these orders: later ones are renumbered, and the chain is joined over the gap.

    Call :func:`retape` first, with 0 rows for those steps, where others read what they wrote.
    """
    kept = [step for step in plan.steps if step.order not in dropped]
    if not kept or plan.steps[0].order in dropped:
        raise PlanError("the first step cannot be dropped: the chain starts with it")
    steps = []
    for order, step in enumerate(kept):
        following = kept[order + 1] if order + 1 < len(kept) else None
        next_input = step.next_input
        if following is None:
            next_input = replace(next_input, grid=None)
        elif following.order != step.order + 1:
            next_input = replace(next_input, grid=following.grid)
        steps.append(replace(step, order=order, next_input=next_input))
    return replace(plan, steps=tuple(steps), gathers=_joined_gathers(plan, [step.order for step in kept]))


def _joined_gathers(plan: Plan, kept: list[int]) -> tuple[RowGather, ...]:
    """Row gathers before the next step that is left; two before the same step become one."""
    joined: dict[int, RowGather] = {}
    for gather in plan.gathers:
        before = next((i for i, order in enumerate(kept) if order >= gather.before), None)
        if before is not None:
            images_in = joined[before].images_in if before in joined else gather.images_in
            joined[before] = RowGather(before, images_in, gather.images_out)
    return tuple(joined.values())


def drop_unread(plan: Plan) -> Plan:
    """The plan without tape writes, restore caches and tapes that nothing reads (those of the last step, for one)."""
    read = _read_writes(plan)

    def keep_read(step: Step, layer: Layer) -> Layer:
        sub_layers = tuple(
            replace(sub, cache=None) if sub.cache and sub.kept is None and (step.order, sub.cache) not in read else sub
            for sub in layer.sub_layers
        )
        writes = tuple(write for write in layer.writes if (step.order, write.tape) in read)
        return replace(layer, sub_layers=sub_layers, writes=writes)

    plan = map_layers(plan, keep_read)
    layers = [layer for step in plan.steps for layer in step.layers]
    tapes = {segment.tape for layer in layers for segment in layer.past}
    caches = {sub.cache for layer in layers for sub in layer.sub_layers}
    return replace(
        plan,
        tapes=tuple(tape for tape in plan.tapes if tape.id in tapes),
        caches=tuple(cache for cache in plan.caches if cache.id in caches),
    )


def _read_writes(plan: Plan) -> set[tuple[int, str]]:
    """Every ``(step order, tape or cache id)`` whose rows a later step reads."""
    read: set[tuple[int, str]] = set()
    tapes: dict[str, list[tuple[int, int, int]]] = {}  # id: (order, start, end) of each write that is still there
    caches: dict[str, int] = {}  # id: order of the step that wrote it last
    for step in plan.steps:
        for layer in step.layers:
            for segment in layer.past:
                end = segment.start + segment.length
                overlapping = [o for o, s, e in tapes.get(segment.tape, []) if s < end and segment.start < e]
                read.update((order, segment.tape) for order in overlapping)
            for sub in layer.sub_layers:
                if sub.cache and sub.kept is not None and sub.cache in caches:
                    read.add((caches[sub.cache], sub.cache))
                elif sub.cache:
                    caches[sub.cache] = step.order
            for write in layer.writes:
                there = tapes.setdefault(write.tape, [])
                if write.mode == "replace":
                    there.clear()
                there.append((step.order, write.start, write.start + write.length))
    return read
