"""Prompts to features, by the text encoder's graph on a free slot: before a pass, and once for every text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.runtime.buffers import requested
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.chain import Chain
from nextscale.runtime.decoding import Floats, settle
from nextscale.runtime.request import passes
from nextscale.runtime.slots import Control, SlotPool
from nextscale.runtime.subjects import Encode
from nextscale.runtime.text import TextTokenizer


class TextEncoder:
    """The text encoder of a bundle, where it has one. Safe from any thread: it takes a slot as a picture does."""

    def __init__(self, bundle: Bundle, slots: SlotPool, batch_sizes: Sequence[int]) -> None:
        self._bundle, self._slots, self._batch_sizes = bundle, slots, batch_sizes

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The bundle's, loaded at the first prompt: features need none."""
        return TextTokenizer.of(self._bundle)

    def encoder(self, control: Control) -> Encode | None:
        """What makes features of a call's prompts; None where the bundle has no text encoder."""
        return None if self._bundle.manifest.tokenizer is None else lambda prompts: self.encode(prompts, control)

    def encode(self, prompts: Sequence[str], control: Control, truncate: bool = False) -> list[tuple[Floats, int]]:
        """Features (tokens, width) of every prompt, and how many tokens count: where blocks attend to them, all."""
        ids, lengths = self.tokenizer.ids_of(prompts, truncate)
        with self._slots.take(control) as chains, chains.slot.lock:
            chain = chains.fitting(int(lengths.max(initial=0)))
            return list(_encode_host(chain, ids, lengths, self._batch_sizes, self._bundle.manifest.text_tokens > 0))


def _encode_host(
    chain: Chain, ids: NDArray[np.int32], lengths: NDArray[np.int32], batch_sizes: Sequence[int], cut: bool
) -> Iterator[tuple[Floats, int]]:
    """Features and length of every row of ids (prompts, tokens), on a slot that nothing else uses.

    Features are of all tokens, or where they are ``cut`` of those that count.
    """
    graph, slot = chain.text, chain.slot
    assert graph is not None  # a bundle without the graph has no tokenizer either
    given: dict[str, NDArray[Any]] = {"ids": ids, "length": lengths}
    for part, images in passes(len(ids), batch_sizes):
        pick = [*part, *[part[-1]] * (images - len(part))]
        for tensor in requested(graph):
            slot.write(tensor, images, given[tensor.source or ""][pick])
        slot.push_requests()
        chain.execute(graph, images)
        settle(chain, [graph], images)
        made = slot.pull(graph.outputs[0], images)[: len(part)].copy()
        for features, length in zip(made, lengths[part.start : part.stop].tolist(), strict=True):
            yield features[:length] if cut else features, length
