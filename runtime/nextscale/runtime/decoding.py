"""Code sums to pictures, on one chain: from the host or from a caller's own array, to either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import InputError
from nextscale.runtime.arrays import borrow
from nextscale.runtime.chain import Chain
from nextscale.runtime.manifest import ITEM_SIZES, Graph, Tensor
from nextscale.runtime.request import passes

Floats = NDArray[np.float32]


def decode_host(chain: Chain, code_sum: Floats, images: int, turn: int) -> Floats:
    """Code sums (count, channels, height, width) to pictures (count, height, width, 3), in a batch of ``images``.

    They go through the code sum buffer number ``turn``, which must be free: the one that no step has yet to read.
    """
    graph, slot, count = chain.reading(turn), chain.slot, len(code_sum)
    filled = np.concatenate([code_sum, np.repeat(code_sum[-1:], images - count, axis=0)])
    slot.view(graph.inputs[0], images)[...] = filled
    slot.push(graph.inputs[0], images)
    slot.clear_flags()
    chain.execute(graph, images)
    settle(chain, [graph], images)
    return take(chain, images, count)


def decode_arrays(chain: Chain, code_sum: Any, batch_sizes: Sequence[int], out: object) -> Floats | None:
    """Code sums of the host, or read where they lie, to pictures on the host, or (then None) in the array ``out``."""
    source, image = chain.last.inputs[0], chain.image
    count = _check_code_sum(code_sum, source)
    to = None if out is None else lend(out, "out", count, image, chain)
    made = []
    if isinstance(code_sum, np.ndarray):
        for part, images in passes(count, batch_sizes):
            made.append(decode_host(chain, code_sum[part.start : part.stop], images, turn=0))
            if to is not None:
                chain.slot.send(image, len(part), to + part.start * item_bytes(image))
    else:
        lent = lend(code_sum, "code_sum", count, source, chain, writes=False)
        for part in _unfilled(count, batch_sizes):
            given = {source.name: lent + part.start * item_bytes(source)}
            if to is not None:
                given[image.name] = to + part.start * item_bytes(image)
            chain.slot.clear_flags()
            chain.decode(chain.last, len(part), given)
            settle(chain, [chain.last], len(part))
            if to is None:
                made.append(take(chain, len(part), len(part)))
    return None if to is not None else np.concatenate(made)


def settle(chain: Chain, graphs: Sequence[Graph], images: int) -> None:
    """Wait for all that was asked for; raise for the first of ``graphs`` that made what is no number."""
    chain.slot.pull_results()
    for graph in graphs:
        chain.check(graph, images)


def take(chain: Chain, images: int, count: int) -> Floats:
    """The pictures that lie in the slot, (count, height, width, 3), the caller's own."""
    return np.ascontiguousarray(chain.slot.pull(chain.image, images)[:count].transpose(0, 2, 3, 1))


def lend(array: object, what: str, count: int, tensor: Tensor, chain: Chain, writes: bool = True) -> int:
    """The address of a caller's array that stands for a tensor of ``count`` pictures."""
    shape = (count, *tensor.concrete(1, 1)[1:])
    return borrow(array, what, shape, tensor.dtype, chain.slot.memory, writes=writes).address


def item_bytes(tensor: Tensor) -> int:
    """Bytes of one picture's share of a tensor."""
    return prod(tensor.concrete(1, 1)[1:]) * ITEM_SIZES[tensor.dtype]


def _check_code_sum(code_sum: Any, source: Tensor) -> int:
    """How many pictures they are of."""
    shape = tuple(getattr(code_sum, "shape", ()))
    asked = source.concrete(1, 1)[1:]
    right = len(shape) == 4 and shape[0] > 0 and shape[1:] == asked
    if not right or (isinstance(code_sum, np.ndarray) and code_sum.dtype != np.float32):
        found = f"{getattr(code_sum, 'dtype', type(code_sum).__name__)} {shape or ''}".rstrip()
        raise InputError(f"code_sum is an array float32 (pictures, {', '.join(map(str, asked))}); found {found}")
    return int(shape[0])


def _unfilled(count: int, batch_sizes: Sequence[int]) -> Iterator[range]:
    """Cut pictures that are read where they lie into batches without fillings, the largest first."""
    start = 0
    while start < count:
        fitting = [size for size in batch_sizes if size <= count - start]
        if not fitting:
            raise InputError(
                f"{count} code sums cannot be read where they lie in batches of {', '.join(map(str, batch_sizes))}: "
                "give a number that these add up to, or a numpy array"
            )
        yield range(start, start + max(fitting))
        start += max(fitting)
