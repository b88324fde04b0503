"""Buffers in one arena: packing those whose lifetimes do not meet, and checking that no byte is lost by it.

The check looks at values, not at buffers: rows that one graph wrote and the last graph that reads them. Two values that
share bytes must not live at one time, and a graph's inputs live until it has finished: no kernel may write over what it
reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nextscale.plan.buffers import Buffer, accesses, buffers
from nextscale.plan.errors import InputError, PlanError
from nextscale.plan.types import Plan

PRECISIONS = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 4}  # bytes of a number in a buffer; int8 is of products alone
SIZES = {"compute": PRECISIONS, "matrix": PRECISIONS | {"int8": 1}}  # bytes of what the precision decides
ALIGNMENT = 256  # bytes; what CUDA's allocator and TensorRT give and ask for


@dataclass(frozen=True)
class Layout:
    """Where each buffer starts in the arena, in bytes, for ``images`` pictures at a precision."""

    images: int
    precision: str
    offsets: Mapping[str, int]
    size: int


@dataclass
class Value:
    """Rows of a buffer from the graph that wrote them to the last that reads them, both included."""

    buffer: str
    start: int
    end: int
    written: int
    read: int


def item_bytes(dtype: str, precision: str) -> int:
    """Bytes of an item; ``compute`` is what the precision makes it, ``matrix`` a weight of a block's matrices."""
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r} is unknown; known are {', '.join(PRECISIONS)}")
    return SIZES[dtype][precision] if dtype in SIZES else 4


def buffer_bytes(buffer: Buffer, images: int, precision: str) -> int:
    """Bytes of a whole buffer."""
    return buffer.rows * row_bytes(buffer, images, precision)


def row_bytes(buffer: Buffer, images: int, precision: str) -> int:
    """Bytes of one of its rows."""
    return buffer.row_items * images * item_bytes(buffer.dtype, precision)


def lifetimes(plan: Plan) -> dict[str, tuple[int, int]]:
    """First and last graph that touch each buffer."""
    found: dict[str, tuple[int, int]] = {}
    for access in accesses(plan):
        first, _ = found.get(access.buffer, (access.graph, access.graph))
        found[access.buffer] = (first, access.graph)
    return found


def pack(plan: Plan, images: int = 1, precision: str = "fp32", share: bool = True) -> Layout:
    """An arena for all buffers, the largest first, each at the lowest place that is free for its whole life.

    ``share=False`` gives every buffer bytes of its own.
    """
    lives = lifetimes(plan)
    used = sorted((b for b in buffers(plan) if b.name in lives), key=lambda b: -buffer_bytes(b, images, precision))
    placed: list[tuple[int, int, tuple[int, int], str]] = []  # start, end, life, name
    for buffer in used:
        life = lives[buffer.name]
        length = -(-buffer_bytes(buffer, images, precision) // ALIGNMENT) * ALIGNMENT
        busy = sorted((s, e) for s, e, other, _ in placed if not share or _meet(life, other))
        offset = 0
        for start, end in busy:
            if offset + length <= start:
                break
            offset = max(offset, end)
        placed.append((offset, offset + length, life, buffer.name))
    size = max((end for _, end, _, _ in placed), default=0)
    return Layout(images, precision, {name: start for start, _, _, name in placed}, size)


def values(plan: Plan) -> list[Value]:
    """Every value of a run, in the order of writing. A read counts for all that it touches of what is still there."""
    live: dict[str, list[Value]] = {}
    found: list[Value] = []
    for access in accesses(plan):
        here, end = live.setdefault(access.buffer, []), access.start + access.length
        if access.mode == "read":
            for value in here:
                if value.start < end and access.start < value.end:
                    value.read = access.graph
            continue
        if access.mode != "append":
            here.clear()
        value = Value(access.buffer, access.start, end, access.graph, access.graph)
        here.append(value)
        found.append(value)
    return found


def find_conflicts(plan: Plan, layout: Layout) -> list[str]:
    """Every pair of values that share bytes while both are needed, as sentences; empty for a sound layout."""
    rows = {buffer.name: row_bytes(buffer, layout.images, layout.precision) for buffer in buffers(plan)}
    limits = {b.name: buffer_bytes(b, layout.images, layout.precision) for b in buffers(plan)}
    problems, placed = [], []
    for value in values(plan):
        if value.buffer not in layout.offsets:
            problems.append(f"buffer {value.buffer!r} has no place")
            continue
        start, end = (layout.offsets[value.buffer] + row * rows[value.buffer] for row in (value.start, value.end))
        if end > layout.offsets[value.buffer] + limits[value.buffer] or end > layout.size:
            problems.append(f"{_graph(plan, value.written)} writes past the end of {value.buffer!r}")
        placed.append((start, end, value))
    problems += [_conflict(plan, a, b) for a, b in _overlapping(placed) if _meet(_life(a), _life(b))]
    return problems


def check_aliasing(plan: Plan, layout: Layout | None = None) -> Layout:
    """The layout (the packed one where none is given); raises :class:`PlanError` with its first conflicts."""
    layout = layout or pack(plan)
    problems = find_conflicts(plan, layout)
    if problems:
        raise PlanError(f"the buffers of plan {plan.name!r} overwrite each other: {'; '.join(problems[:3])}")
    return layout


def _overlapping(placed: list[tuple[int, int, Value]]) -> Iterator[tuple[Value, Value]]:
    """Pairs of values that share bytes, by a sweep over their starts."""
    open_now: list[tuple[int, Value]] = []
    for start, end, value in sorted(placed, key=lambda item: (item[0], item[1])):
        open_now = [(other_end, other) for other_end, other in open_now if other_end > start]
        yield from ((other, value) for _, other in open_now)
        open_now.append((end, value))


def _life(value: Value) -> tuple[int, int]:
    return value.written, value.read


def _meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def _conflict(plan: Plan, a: Value, b: Value) -> str:
    first, second = sorted((a, b), key=lambda value: value.written)
    return (
        f"{_graph(plan, second.written)} writes {second.buffer!r} over rows {first.start} to {first.end} of "
        f"{first.buffer!r}, which {_graph(plan, first.read)} still reads"
    )


def _graph(plan: Plan, graph: int) -> str:
    return "begin" if graph < 0 else f"step {graph}" if graph < len(plan.steps) else "decode"
