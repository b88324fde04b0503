"""The plan's buffers are those that the graph signatures bind: every tensor fills one, of its dtype."""

from __future__ import annotations

import math

import pytest

from nextscale.plan.buffers import Buffer, buffers
from nextscale.plan.recipes import plan_for, recipe
from nextscale.plan.types import Plan
from nextscale.runtime.buffers import for_text
from nextscale.runtime.manifest import Tensor
from nextscale.runtime.signatures import derive_graphs

SMALL = {"guidance", "top_p", "temperature"}  # a few bytes, not told as buffers
NAMES = (
    *("var-d16-fastvar", "infinity-125m-0.25m-fastvar", "infinity-2b-1m-fastvar", "infinity-8b-0.25m"),
    *("hart-1024", "hart-1024-fastvar"),
)


def items(tensor: Tensor, plan: Plan) -> int:
    """Numbers of a tensor for one picture."""
    return math.prod(tensor.concrete(1, plan.steps[0].rows))


@pytest.mark.parametrize("name", NAMES)
def test_tensors_fill_their_buffers(name: str) -> None:
    plan = plan_for(recipe(name))
    made: dict[str, Buffer] = {buffer.name: buffer for buffer in buffers(plan)}
    largest = dict.fromkeys(made, 0)
    text = plan.model().text
    for graph in for_text(derive_graphs(plan, "fp16"), text.tokens if text else 0):
        for tensor in (*graph.inputs, *graph.outputs):
            if tensor.buffer in SMALL:
                continue
            buffer = made[tensor.buffer]
            assert tensor.dtype == {"compute": "float16"}.get(buffer.dtype, buffer.dtype), tensor.name
            end = items(tensor, plan) + tensor.offset * buffer.row_items
            largest[buffer.name] = max(largest[buffer.name], end)
    turns = ("state.map.", "state.code_sum.")
    for buffer in made.values():
        found, size = largest[buffer.name], buffer.rows * buffer.row_items
        assert found == size or (buffer.name.startswith(turns) and 0 < found < size), buffer.name
