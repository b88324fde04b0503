"""Signatures from the plan: names, shapes and places of every tensor, against rules of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.bundles import text_plan, tiny_plan, write_bundle

import nextscale.runtime.manifest as manifests
from nextscale.plan.conditioning import MASK_LANES
from nextscale.plan.errors import PlanError
from nextscale.plan.types import Plan, RowGather
from nextscale.runtime.errors import ManifestError
from nextscale.runtime.manifest import Graph, Tensor
from nextscale.runtime.signatures import check, derive_graphs


def by_name(graph: Graph) -> dict[str, Tensor]:
    return {t.name: t for t in (*graph.inputs, *graph.outputs)}


def test_begin_and_decode() -> None:
    begin, *_, decode = derive_graphs(tiny_plan())
    assert [t.name for t in begin.inputs] == ["labels.in"]
    assert {t.name: t.shape for t in begin.outputs} == {
        "cond.sos.out": ("rows", 8),
        "cond.adaln.00.out": ("rows", 6, 8),
        "cond.adaln.01.out": ("rows", 6, 8),
        "cond.head.out": ("rows", 2, 8),
    }
    assert [(t.name, t.shape) for t in (*decode.inputs, *decode.outputs)] == [
        ("state.code_sum.in", ("images", 4, 4, 4)),
        ("image.out", ("images", 3, 8, 8)),
    ]


def test_the_first_step_reads_no_past_and_the_last_leaves_none() -> None:
    _, first, *_, last, _ = derive_graphs(tiny_plan())
    assert {"cond.sos.in", "noise.in", "tokens.in", "guidance.in", "top_p.in", "temperature.in"} <= set(by_name(first))
    assert not any(t.name.startswith(("tape", "cache", "state")) for t in first.inputs)
    assert [t.name for t in last.outputs] == ["logits.out", "tokens.out", "state.code_sum.out"]
    assert "cond.sos.in" not in by_name(last)


def test_tapes_grow_by_what_is_computed() -> None:
    """Past and new rows of every step; the third scale has 6 tokens, the pruned fourth reads 11 rows."""
    _, *steps, _ = derive_graphs(tiny_plan())
    past = [by_name(s)["tape.var.k.01.in"].shape[0] if s.step else 0 for s in steps]
    assert past == [0, 1, 5, 11]
    for step, start in zip(steps[:-1], past, strict=False):
        new = by_name(step)["tape.var.v.01.out"]
        assert (new.buffer, new.offset, new.access) == ("tape.var.v.01", start, "append")
        assert new.shape == ({0: 1, 1: 4, 2: 6}[step.step or 0], "rows", 2, 4)


def test_restore_caches_are_written_at_the_cache_scale_and_read_where_pruned() -> None:
    _, *steps, _ = derive_graphs(tiny_plan())
    written = [[t.name for t in s.outputs if t.name.startswith("cache")] for s in steps]
    read = [[t.name for t in s.inputs if t.name.startswith("cache")] for s in steps]
    names = ["cache.attn.00", "cache.ffn.00", "cache.attn.01", "cache.ffn.01"]
    assert written == [[], [], [f"{n}.out" for n in names], []]
    assert read == [[], [], [], [f"{n}.in" for n in names]]
    assert by_name(steps[3])["cache.ffn.01.in"].shape == ("rows", 6, 8)


def test_every_read_was_written_before_and_no_graph_reads_and_writes_one_place() -> None:
    for plan in (tiny_plan(), tiny_plan(pruned=False), tiny_plan(smooth=True), text_plan(), text_plan(prefix=True)):
        written: dict[str, set[int]] = {}
        for graph in derive_graphs(plan):
            for t in graph.inputs:
                if t.source is None and t.buffer.startswith("tape"):
                    assert set(range(t.offset, t.offset + int(t.shape[0]))) <= written[t.buffer]
                elif t.source is None:
                    assert t.buffer in written, (graph.name, t.name)
            reads = {(t.buffer, row) for t in graph.inputs for row in _rows(t)}
            for t in graph.outputs:
                assert not reads & {(t.buffer, row) for row in _rows(t)}, (graph.name, t.name)
                written.setdefault(t.buffer, set()).update(_rows(t))


def _rows(tensor: Tensor) -> range:
    length = tensor.shape[0] if tensor.name.startswith("tape") else 1
    return range(tensor.offset, tensor.offset + int(length))


def test_precision_is_that_of_tapes_and_caches() -> None:
    for precision, dtype in (("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")):
        dtypes = {t.name[:5]: t.dtype for g in derive_graphs(tiny_plan(), precision) for t in (*g.inputs, *g.outputs)}
        assert (dtypes["tape."], dtypes["cache"], dtypes["state"], dtypes["token"]) == (
            dtype,
            dtype,
            "float32",
            "int32",
        )
    with pytest.raises(PlanError, match="'fp64' is none of"):
        derive_graphs(tiny_plan(), "fp64")


def test_a_past_that_starts_later_is_read_from_there() -> None:
    plan = tiny_plan()
    layer = plan.steps[3].layers[0]
    later = replace(layer, past=(replace(layer.past[0], start=5, length=6),))
    last = replace(plan.steps[3], layers=(later, *plan.steps[3].layers[1:]))
    tensor = by_name(derive_graphs(replace(plan, steps=(*plan.steps[:3], last)))[4])["tape.var.v.00.in"]
    assert (tensor.offset, tensor.shape[0]) == (5, 6)


def test_smoothing_is_a_second_noise() -> None:
    assert not any("noise.smooth.in" in by_name(g) for g in derive_graphs(tiny_plan()))
    noise = by_name(derive_graphs(tiny_plan(smooth=True))[2])["noise.smooth.in"]
    assert (noise.shape, noise.source) == (("images", 4, 11), "uniforms.1")


def test_a_text_that_is_attended_to() -> None:
    text, begin, *steps, _ = derive_graphs(text_plan(), "fp16", text=True)
    assert (text.name, text.file, text.step) == ("text", "text.onnx", None)
    assert [(t.name, t.dtype, t.shape, t.source) for t in text.inputs] == [
        ("ids.in", "int32", ("images", "text"), "ids"),
        ("length.in", "int32", ("images",), "length"),
    ]
    assert [(t.name, t.dtype, t.shape, t.buffer) for t in text.outputs] == [
        ("text.out", "float32", ("images", "text", 5), "features")
    ]
    assert [(t.name, t.dtype, t.shape, t.source) for t in begin.inputs] == [
        ("text.in", "float32", ("images", "text", 5), "text"),
        ("text_length.in", "int32", ("images",), "text_length"),
        ("negative.in", "float32", ("images", "text", 5), "negative"),
        ("negative_length.in", "int32", ("images",), "negative_length"),
    ]
    made = {t.name: (t.dtype, t.shape) for t in begin.outputs}
    assert made["cond.text.k.01.out"] == ("float16", ("rows", "text", 2, 4 + MASK_LANES))
    assert made["cond.text.v.01.out"] == ("float16", ("rows", "text", 2, 4 + MASK_LANES))
    assert made["cond.adaln.01.out"] == ("float32", ("rows", 6, 8))
    for step in steps:  # a text is attended to in every step
        assert {"cond.text.k.00.in", "cond.text.v.01.in"} <= set(by_name(step))
    assert "cache.ca.01.in" in by_name(steps[3])


def test_a_bitwise_token_has_as_many_draws() -> None:
    _, *steps, _ = derive_graphs(text_plan())
    found = by_name(steps[1])
    for name in ("noise.in", "logits.out"):
        assert found[name].shape == ("images", 4, 6)
    for name in ("tokens.in", "tokens.out"):
        assert found[name].shape == ("images", 4, 3)
    assert found["state.map.in"].shape == ("images", 4, 3)


def test_a_text_that_is_a_prefix() -> None:
    begin, *steps, _ = derive_graphs(text_plan(prefix=True))
    assert [t.name for t in begin.inputs] == ["text.in", "text_length.in"]
    made = {t.name: t.shape for t in begin.outputs}
    assert made["cond.sos.out"] == ("rows", 6, 8)
    assert made["cond.position.out"] == ("rows",)
    first = by_name(steps[0])
    assert first["noise.in"].shape == ("images", 1, 11)  # six tokens in, the last of them out
    assert first["tape.var.k.00.out"].shape == (6, "rows", 2, 4)
    assert by_name(steps[1])["tape.var.k.00.in"].shape == (6, "rows", 2, 4)
    assert all("cond.position.in" in by_name(step) for step in steps)


def test_a_residual_diffusion_is_a_third_noise_where_a_step_has_it() -> None:
    _, *steps, _ = derive_graphs(text_plan(prefix=True))
    assert ["noise.diffusion.in" in by_name(step) for step in steps] == [False, False, False, True]
    noise = by_name(steps[3])["noise.diffusion.in"]
    assert (noise.shape, noise.source) == (("images", 16, 3, 4), "uniforms.2")


def test_a_text_encoder_needs_a_plan_of_texts() -> None:
    with pytest.raises(PlanError, match="'tiny' is not conditioned on text, so it has no place for a text encoder"):
        derive_graphs(tiny_plan(), text=True)


def test_a_tokenizer_and_the_graph_text_go_together(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "texts", text_plan())
    manifest = manifests.loads((folder / manifests.FILE_NAME).read_text())
    check(manifest)
    with pytest.raises(ManifestError, match=r"\['text'\] are not in the plan"):
        check(replace(manifest, tokenizer=None))
    with pytest.raises(ManifestError, match="'text' is missing"):
        check(replace(manifest, graphs=manifest.graphs[1:]))


def _with_step(plan: Plan, **changes: object) -> Plan:
    return replace(plan, steps=(replace(plan.steps[0], **changes), *plan.steps[1:]))  # type: ignore[arg-type]


UNSUPPORTED = [
    (lambda p: replace(p, models=(*p.models, ("draft", p.models[0][1]))), "more than one weight set"),
    (lambda p: replace(p, gathers=(RowGather(1, 2, 1),)), "candidates"),
    (lambda p: _with_step(p, kind="prefill"), "step 0 of kind 'prefill'"),
    (lambda p: _with_step(p, guidance_rows=1), "guidance rows that change"),
    (lambda p: _with_step(p, order=7), "not numbered in their order"),
    (lambda p: replace(p, tapes=(replace(p.tapes[0], prefilled=3), *p.tapes[1:])), "replaced or pre-filled"),
    (lambda p: replace(p, guidance=replace(p.guidance, scales=("a", "b"))), "several guidance scales"),
]


@pytest.mark.parametrize("change, reason", UNSUPPORTED, ids=[u[1] for u in UNSUPPORTED])
def test_what_graphs_cannot_do_yet_is_refused(change: object, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        derive_graphs(change(tiny_plan()))  # type: ignore[operator]


def test_a_manifest_must_say_what_its_plan_says(bundle: Path) -> None:
    manifest = manifests.loads((bundle / manifests.FILE_NAME).read_text())
    check(manifest)
    step = manifest.graphs[2]
    moved = replace(step, inputs=(*step.inputs[:-1], replace(step.inputs[-1], offset=1)))
    lost = replace(step, outputs=step.outputs[1:])
    for graph, message in ((moved, "step_01.inputs: the plan says"), (lost, "step_01.outputs: .*missing")):
        graphs = tuple(graph if g.name == graph.name else g for g in manifest.graphs)
        with pytest.raises(ManifestError, match=message):
            check(replace(manifest, graphs=graphs))
    with pytest.raises(ManifestError, match="'decode' is missing"):
        check(replace(manifest, graphs=manifest.graphs[:-1]))
    with pytest.raises(ManifestError, match="not in the plan"):
        check(replace(manifest, graphs=(*manifest.graphs, replace(step, name="step_09"))))
