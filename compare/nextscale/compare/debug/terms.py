"""A graph's tensors in the model's terms: which block, which part of it, which weights.

Composed nodes are named by their place (``blocks.7/...``) and read weights by their checkpoint keys; what reads none
stands between two that do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

PARTS = {
    "attn.mat_qkv": "attention, queries, keys and values",
    "attn.qkv_bias": "attention, queries, keys and values",
    "attn.q_scale": "attention, scale of the queries",
    "attn.proj": "attention, projection",
    "ffn.fc1": "feed-forward, first layer",
    "ffn.fc2": "feed-forward, second layer",
    "word_embed": "embedding of the input map",
    "head": "projection to logits",
    "class_emb": "class table",
    "quantize.embedding": "code lookup",
}
PLACES = {"embed": "embedding", "finish": "end of the step", "begin": "begin", "decode": "decoder"}
OPERATORS = {
    "MultiHeadAttention": "attention itself",
    "ScatterRestore": "restore of pruned tokens",
    "TopK": "choice of the largest",
    "LayerNormalization": "norm",
    "Gelu": "GELU",
    "ArgMax": "draw of the tokens",
}
OUTPUTS = {
    "logits.out": "logits after guidance",
    "tokens.out": "sampled tokens",
    "state.code_sum.out": "code sum",
    "state.map.out": "the next step's input map",
    "image.out": "pixels",
}
_LEAVES = ("weight", "bias")


@dataclass(frozen=True)
class Place:
    """One tensor: the node that makes it, and where that is. ``weights`` are bundle names; ``part`` is "" without."""

    tensor: str
    node: str
    operator: str
    where: str
    part: str
    weights: tuple[str, ...]
    after: str = ""
    before: str = ""

    @property
    def words(self) -> str:
        """``block 7, attention, projection``; or what kind of node it is and between which parts."""
        if self.part or self.tensor in OUTPUTS:
            return f"{self.where}, {self.part or OUTPUTS[self.tensor]}"
        near = [f"{word} {part}" for word, part in (("after", self.after), ("before", self.before)) if part]
        between = f" ({'; '.join(near)})" if near else ""
        return f"{self.where}, {OPERATORS.get(self.operator, self.operator)}{between}"


def places(model: onnx.ModelProto) -> list[Place]:
    """Every tensor that a node makes, in the order of the graph."""
    from onnx import TensorProto

    weights = {t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL}
    found = [place for node in model.graph.node for place in _of(node, weights)]
    return list(_between(found))


def _of(node: onnx.NodeProto, weights: set[str]) -> Iterator[Place]:
    read = tuple(name for name in node.input if name in weights)
    parts = [part_of(name) for name in read]
    where = place_of(node.name or node.output[0])
    for output in filter(None, node.output):
        yield Place(output, node.name, node.op_type, where, next(filter(None, parts), ""), read)


def place_of(name: str) -> str:
    """``blocks.7/node_add`` is "block 7"."""
    place = name.partition("/")[0]
    block = re.fullmatch(r"blocks\.(\d+)", place)
    return f"block {block[1]}" if block else PLACES.get(place, place)


def part_of(weight: str) -> str:
    """``var/blocks.7.attn.proj.weight`` is "attention, projection"; a matrix of resizing is no part."""
    key = weight.removeprefix("derived/")
    if "/" not in key:
        return ""
    key = re.sub(r"^blocks\.\d+\.", "", key.partition("/")[2])
    stem, _, leaf = key.rpartition(".")
    key = stem if leaf in _LEAVES else key
    if key.startswith("lvl_pos"):
        return "positions and levels"
    return PARTS.get(key, key)


def _between(found: Sequence[Place]) -> Iterator[Place]:
    """Fills in what comes before and after in the same place."""
    for i, place in enumerate(found):
        before = next((p.part for p in found[i + 1 :] if p.part and p.where == place.where), "")
        after = next((p.part for p in reversed(found[:i]) if p.part and p.where == place.where), "")
        yield replace(place, after=after, before=before)
