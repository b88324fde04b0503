"""Buffers: where tensors lie, and that graphs write there."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from support.bundles import text_plan, tiny_plan

from nextscale.plan.types import Plan
from nextscale.runtime.backends.base import Loaded
from nextscale.runtime.backends.host import HostMemory
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.buffers import Layout, Slot, for_text, layout, unrolled
from nextscale.runtime.bundle import Bundle, open_bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.signatures import derive_graphs


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


def layout_of(opened: Bundle, images: int) -> Layout:
    return layout(unrolled(opened.manifest.graphs), opened.manifest.guidance_rows, images)


def slot_of(opened: Bundle, images: int) -> tuple[Slot, Loaded]:
    loaded = OnnxRuntime(threads=1).open(opened)
    return Slot(unrolled(opened.manifest.graphs), opened.manifest.guidance_rows, loaded, images), loaded


def test_buffers_do_not_overlap_and_hold_their_longest_tensor(opened: Bundle) -> None:
    images = 3
    found = layout_of(opened, images)
    places = sorted(found.places.values())
    assert all(start % 256 == 0 for start, _ in places)
    assert all(a + length <= b for (a, length), (b, _) in pairwise(places))
    assert found.size == sum(places[-1])
    assert found.places["tape.var.k.00"][1] == 11 * (2 * images) * 2 * 4 * 4  # rows, R, heads, head_dim, bytes
    assert found.places["noise"][1] == images * 16 * 11 * 4
    assert found.places["state.map.1"][1] == images * 16 * 4 * 4  # steps 1 and 3 read it: 4 and 16 tokens


def test_causes_add_up(opened: Bundle) -> None:
    found = layout_of(opened, 2)
    causes = found.by_cause()
    assert causes["tapes"] == 2 * 2 * 11 * 4 * 2 * 4 * 4
    assert causes["restore caches"] == 2 * 2 * 4 * 6 * 8 * 4
    assert sum(causes.values()) == sum(length for _, length in found.places.values())
    assert set(causes) == {
        "tapes", "restore caches", "conditions", "state", "noise", "logits", "pictures", "requests and results"
    }  # fmt: skip


@pytest.mark.parametrize("plan", [tiny_plan(), text_plan(), text_plan(prefix=True)], ids=["class", "text", "prefix"])
def test_the_layout_is_what_the_plan_says_of_memory(plan: Plan) -> None:
    """The plan counts the same buffers for its own report, by rules of its own; guidance and the like it leaves out."""
    plan_buffers = pytest.importorskip("nextscale.plan.buffers")
    text = plan.model().text
    graphs = for_text(derive_graphs(plan), text.tokens if text else 0)
    found = layout(unrolled(graphs), 2, 1)
    counted = {b.name: b.rows * b.row_items * 4 for b in plan_buffers.buffers(plan)}
    assert counted.pop("state.map.0") >= found.places["state.map.0"][1]  # the plan makes both maps the wider one's size
    small = ("guidance", "top_p", "temperature", "state.map.0", "keys", "flags")
    for buffer in ("tokens", "tokens.forced"):  # one for each step: 1, 4, 6 and 16 tokens
        each = [length for name, (_, length) in found.places.items() if name.startswith(f"{buffer}.step")]
        assert max(each) == counted.pop(buffer)
        assert len(each) == 4
        small = (*small, f"{buffer}.step")
    assert {name: length for name, (_, length) in found.places.items() if not name.startswith(small)} == counted


@pytest.mark.parametrize("images", [1, 3])
def test_a_tapes_past_is_a_prefix_and_its_new_rows_the_next_slice(opened: Bundle, images: int) -> None:
    slot, _ = slot_of(opened, images=3)
    row = 2 * images * 2 * 4 * 4  # bytes of a tape row for so many pictures
    start = None
    steps = unrolled(opened.manifest.steps)
    for graph, past in zip(steps[:3], (0, 1, 5), strict=True):
        tensors = {t.name: slot.bound(t, images) for t in (*graph.inputs, *graph.outputs)}
        new = tensors["tape.var.k.01.out"]
        start = new.address if start is None else start
        assert new.address == start + past * row
        if past:
            assert tensors["tape.var.k.01.in"].address == start
            assert tensors["tape.var.k.01.in"].shape == (past, 2 * images, 2, 4)


def test_graphs_write_tapes_in_place(opened: Bundle) -> None:
    """After a step exactly its slice of the tape's memory has changed; the past in front of it has not."""
    (slot, loaded), images = slot_of(opened, images=2), 2
    for graph in unrolled(opened.manifest.graphs[:3]):  # begin, step_00, step_01
        for t in graph.inputs:
            if t.source is not None:
                slot.view(t, images)[...] = 0.5 if t.dtype == "float32" else 0
        tape = next((t for t in graph.outputs if t.name == "tape.var.v.00.out"), None)
        whole = _whole_tape(slot, opened) if tape else np.empty(0)
        if tape:
            whole[tape.offset :] = np.nan
        before = whole.copy()
        inputs, outputs = ([slot.bound(t, images) for t in tensors] for tensors in (graph.inputs, graph.outputs))
        loaded.prepare(slot.memory, graph.name, inputs, outputs).execute()
        if tape:
            end = tape.offset + int(tape.shape[0])
            assert np.array_equal(whole[: tape.offset], before[: tape.offset])
            assert np.isfinite(whole[tape.offset : end]).all()
            assert np.isnan(whole[end:]).all()


def _whole_tape(slot: Slot, opened: Bundle) -> np.ndarray:
    """All 11 rows of the value tape of layer 0, as one array over the slot's memory."""
    last = next(t for t in opened.manifest.steps[-1].inputs if t.name == "tape.var.v.00.in")
    return slot.view(last, 2)


def test_what_the_host_writes_and_reads_lies_together(opened: Bundle) -> None:
    """Two copies move it: requests with cleared flags before a pass, flags with tokens after it, and nothing else."""
    found = layout_of(opened, 3)

    def inside(span: tuple[int, int]) -> set[str]:
        return {n for n, (start, size) in found.places.items() if span[0] <= start and start + size <= sum(span)}

    graphs = [graph.name for graph in unrolled(opened.manifest.graphs)]
    steps = [name for name in graphs if name.startswith("step")]
    flags = {f"flags.{s}.{t}.out" for s in steps for t in ("logits", "state.code_sum")} | {"flags.decode.image.out"}
    asked = {"keys", "labels.in", "top_p.in", "temperature.in"}
    asked |= {f"{name}.{step}" for name in ("guidance", "tokens.forced") for step in steps}
    plain = {"labels.in": "labels", "top_p.in": "top_p", "temperature.in": "temperature"}
    assert inside(found.requests) == {plain.get(name, name) for name in asked} | flags
    assert inside(found.results) == flags | {f"tokens.{step}" for step in steps}
    assert inside(found.flags) == flags
    shown = {"state.code_sum.0", "state.code_sum.1", "image", "logits"}
    assert inside((0, found.visible)) == inside(found.requests) | inside(found.results) | shown


def test_host_memory_is_aligned_and_views_are_the_memory() -> None:
    memory = HostMemory(1000)
    assert memory.address % 64 == 0
    assert memory.size == 1000
    memory.view(8, (2, 3), "float32")[...] = 7
    assert memory.view(8, (6,), "float32").tolist() == [7] * 6
    assert memory.view(0, (2,), "bfloat16").dtype == np.uint16
    assert memory.view(0, (2,), "float32").ctypes.data == memory.address


def test_too_much_memory_is_an_error_of_ours() -> None:
    with pytest.raises(BackendError, match=r"no memory for buffers of [\d,]+ bytes: use fewer slots"):
        HostMemory(2**62)
