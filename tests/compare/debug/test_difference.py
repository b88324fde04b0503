"""The first tensor that differs, on real graphs of a tiny checkpoint: none where all is well, and a planted fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.damage import with_other_weights

from nextscale.compare.debug import runners, sessions
from nextscale.compare.debug.difference import Found, Row, compared, find
from nextscale.compare.debug.record import find_graph, record
from nextscale.compare.debug.runners import Task, build_watched, with_outputs
from nextscale.compare.debug.terms import Place, places
from nextscale.plan.errors import EnvironmentProblem, InputError, NextscaleError
from nextscale.runtime import Pipeline
from nextscale.runtime.backends.nvrtc import compile_ptx
from nextscale.runtime.backends.onnxruntime_graphs import cuda_graph
from nextscale.runtime.bundle import Bundle, open_bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.request import Request, make_request

GRAPHS = ["begin", "step_00", "step_02", "step_03", "decode"]


@pytest.fixture(scope="module")
def pruned(tiny_pruned_bundle: Path) -> Bundle:
    return open_bundle(tiny_pruned_bundle)


def request_for(bundle: Bundle) -> Request:
    return make_request(bundle.manifest, [3, 7], seed=5)


def look(one: Bundle, other: Bundle, graph: str, backends: tuple[str, str], **more: object) -> Found:
    files = more.pop("checkpoint", None)
    tasks = [
        Task(name, side, find_graph(side.manifest, graph), files)  # type: ignore[arg-type]
        for name, side in zip(backends, (one, other), strict=True)
    ]
    return find(*tasks, request_for(one), 1e-4, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("graph", GRAPHS)
def test_optimised_and_not_agree_on_every_tensor(pruned: Bundle, graph: str) -> None:
    found = look(pruned, pruned, graph, ("onnxruntime", "onnxruntime-unoptimized"))
    model = onnx.load_model(pruned.path(f"{graph}.onnx"), load_external_data=False)
    made = [name for node in model.graph.node for name in node.output if name]
    assert found.agrees
    assert [row.place.tensor for row in found.rows] == made, "all of them, in the order of the graph"
    assert {row.place.tensor for row in found.plain} == {output.name for output in model.graph.output}
    assert "agree on all" in found.sentence


@pytest.mark.parametrize("graph", GRAPHS)
def test_eager_agrees_on_what_has_a_name_there(pruned: Bundle, tiny_checkpoint: tuple[Path, Path], graph: str) -> None:
    found = look(pruned, pruned, graph, ("onnxruntime", "eager"), checkpoint=tiny_checkpoint)
    assert found.agrees, found.sentence
    words = [row.place.words for row in found.rows]
    outputs = {tensor.name for tensor in pruned.manifest.graph(graph).outputs}
    assert outputs <= {row.place.tensor for row in found.rows}
    if graph.startswith("step"):
        for part in ("attention, projection", "feed-forward, first layer", "feed-forward, second layer"):
            assert {f"block 0, {part}", f"block 1, {part}"} <= set(words)
        assert any(row.error > 0 for row in found.rows), "two computations, not one"


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ("var/blocks.1.ffn.fc2.weight", "block 1, feed-forward, second layer"),
        ("var/blocks.1.attn.proj.weight", "block 1, attention, projection"),
        ("var/blocks.0.attn.mat_qkv.weight", "block 0, attention, queries, keys and values"),
        ("var/word_embed.weight", "embedding, embedding of the input map"),
        ("var/head.weight", "end of the step, projection to logits"),
        ("vae/quantize.embedding.weight", "end of the step, code lookup"),
    ],
)
def test_a_planted_fault_is_named(pruned: Bundle, tmp_path: Path, weight: str, words: str) -> None:
    broken = with_other_weights(pruned.folder, tmp_path / "broken", weight, lambda w: w * 1.01)
    found = look(pruned, open_bundle(broken), "step_03", ("onnxruntime", "onnxruntime"))
    assert found.first is not None
    assert found.first.place.words == words
    assert weight in found.first.place.weights
    assert found.first.error > 1e-4
    earlier = found.rows[: found.rows.index(found.first)]
    assert all(row.largest == 0 for row in earlier)
    assert words in found.sentence
    assert weight in found.sentence


def test_a_fault_against_eager_is_named(pruned: Bundle, tiny_checkpoint: tuple[Path, Path], tmp_path: Path) -> None:
    broken = open_bundle(
        with_other_weights(pruned.folder, tmp_path / "b", "var/blocks.1.ffn.fc1.weight", lambda w: w * 1.01)
    )
    found = look(broken, broken, "step_03", ("onnxruntime", "eager"), checkpoint=tiny_checkpoint)
    assert found.first is not None
    assert found.first.place.words == "block 1, feed-forward, first layer"


def test_inputs_are_those_of_a_real_picture(pruned: Bundle) -> None:
    graph = pruned.manifest.graph("step_02")
    feed = record(pruned, graph, request_for(pruned))
    assert feed.keys() == {tensor.name for tensor in graph.inputs}
    with Pipeline.open(pruned.folder, threads=1) as pipeline:
        result = pipeline.generate([3, 7], seed=5)
    assert np.array_equal(feed["tokens.in"], result.tokens[2]), "forced to what is sampled"
    assert all(np.ptp(array) > 0 for name, array in feed.items() if name.startswith(("tape", "state", "cond", "noise")))


def test_rows_of_odd_values() -> None:
    place = Place("x", "node", "TopK", "block 1", "", ())

    def row(one: list[float], other: list[float], dtype: str = "float32") -> Row:
        return compared(place, np.array(one, dtype), np.array(other, dtype), 1e-4)

    inf, nan = float("inf"), float("nan")
    assert row([1, -inf, nan], [1, -inf, nan]).error == 0, "what both have is no difference"
    assert row([1, 2], [1, nan]).error == inf
    assert row([1, inf], [1, 2]).beyond
    assert row([0, 10], [0, 10.002]).error == pytest.approx(0.002 / 5, rel=1e-3), "relative to the spread"
    assert not row([0, 1], [0, 1.00005]).beyond
    whole = row([3, 4, 5, 6], [3, 5, 4, 6], "int64")
    assert (whole.whole, whole.error, whole.beyond) == (True, 0.5, True)
    assert not row([], []).beyond
    found = Found("step_03", ("a", "b"), 1e-4, (whole,), ())
    assert "50 % of x, whole numbers; where values that a choice is made from tie" in found.sentence


def test_a_difference_that_watching_hides_is_said() -> None:
    place = Place("logits.out", "node", "Gemm", "end of the step", "head", ("var/head.weight",))
    inside, outside = Row(place, 0.0, 0.0, 0.0, False), Row(place, 1.0, 1.0, 1.0, True)
    found = Found("step_03", ("a", "b"), 1e-4, (inside,), (outside,))
    assert not found.agrees
    assert "once each of them is an output: what differs is how nodes are joined" in found.sentence


def test_only_part_of_a_graph_may_be_watched(pruned: Bundle) -> None:
    found = look(pruned, pruned, "step_03", ("onnxruntime", "onnxruntime-unoptimized"), only="blocks.1/")
    inside = {row.place.tensor for row in found.rows} - {row.place.tensor for row in found.plain}
    assert inside
    assert all(name.startswith("blocks.1/") for name in inside)
    with pytest.raises(InputError, match=r"no tensor whose name begins with 'blocks\.9/'"):
        look(pruned, pruned, "step_03", ("onnxruntime", "onnxruntime"), only="blocks.9/")


def test_the_bundle_is_left_as_it_was(pruned: Bundle) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in pruned.folder.iterdir()}
    look(pruned, pruned, "step_03", ("onnxruntime", "onnxruntime-unoptimized"))
    assert {path.name: path.stat().st_mtime_ns for path in pruned.folder.iterdir()} == before


def test_what_cannot_be_compared_is_refused(pruned: Bundle, tiny_bundle: Path) -> None:
    for backends, kind, sentence in (
        (("onnxruntime", "magic"), InputError, "backend 'magic' is none of onnxruntime"),
        (("onnxruntime", "eager"), InputError, "give --model and --vae"),
        (("tensorrt", "tensorrt-rtx"), InputError, "one flavour of TensorRT"),
    ):
        with pytest.raises(kind, match=sentence):
            look(pruned, pruned, "step_00", backends)
    with pytest.raises(InputError, match="another plan or precision than each other"):
        look(pruned, open_bundle(tiny_bundle), "step_00", ("onnxruntime", "onnxruntime"))
    with pytest.raises(InputError, match="no graph 'step_09'; it has begin, step_00"):
        find_graph(pruned.manifest, "step_09")


def test_a_gpu_that_is_not_there_is_said(pruned: Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU")
    with pytest.raises(EnvironmentProblem, match="no CUDAExecutionProvider"):
        look(pruned, pruned, "step_00", ("onnxruntime", "onnxruntime-cuda"))
    with pytest.raises(NextscaleError):
        look(pruned, pruned, "step_00", ("onnxruntime", "tensorrt-rtx"))


@pytest.mark.parametrize("graph", GRAPHS)
def test_on_a_gpu_it_is_the_graph_that_the_runtime_runs(
    pruned: Bundle, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lifted, and of nodes that the provider has kernels for. The CPU's provider stands for CUDA's."""
    monkeypatch.setattr(sessions, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(sessions, "provider_options", lambda *given: {})
    with pytest.raises(BackendError, match=f"would run [0-9]+ nodes of {graph} on the CPU"):
        look(pruned, pruned, graph, ("onnxruntime", "onnxruntime-cuda"))
    opened: list[tuple[onnx.ModelProto, bool]] = []

    def open_cuda(bundle: Bundle, name: str, model: bytes, sizes: dict[str, int], strict: bool) -> object:
        opened.append((onnx.load_from_string(model), strict))
        return sessions.open_cuda_session(bundle, name, model, sizes, strict=False)

    monkeypatch.setattr(runners, "open_cuda_session", open_cuda)
    found = look(pruned, pruned, graph, ("onnxruntime", "onnxruntime-cuda"))
    assert found.agrees, found.sentence
    (plain, first), (watched, second) = opened
    assert (first, second) == (True, False), "what is an output may leave the GPU"
    assert plain == cuda_graph(pruned.path(f"{graph}.onnx"))
    assert plain.graph.node == watched.graph.node
    every = with_outputs(pruned.path(f"{graph}.onnx"), ())
    assert len(found.rows) == len(places(every)), "each tensor of the bundle's graph is there"


def test_on_a_gpu_tensorrt_restores_with_what_a_build_takes(pruned: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flavour's own library needs a GPU: here the plugin is asked for, is not taken, and that is said."""
    asked: list[object] = []
    monkeypatch.setattr(runners, "register", lambda module, compiler: asked.append(compiler))
    monkeypatch.setattr(runners, "default_restore", lambda flavor, target: "plugin")
    step = next(graph for graph in pruned.manifest.steps if "ScatterRestore" in kinds(pruned, graph.name))
    task = Task("tensorrt-rtx", pruned, step)
    with pytest.raises(EnvironmentProblem, match=r"takes the plugin for 0 of the [0-9]+ restores"):
        build_watched(task, (), record(pruned, task.graph, request_for(pruned)), "sm86")
    assert asked == [compile_ptx]


def kinds(bundle: Bundle, graph: str) -> set[str]:
    return {node.op_type for node in with_outputs(bundle.path(f"{graph}.onnx"), ()).graph.node}


def test_an_engine_with_every_tensor_an_output_is_built(pruned: Bundle) -> None:
    task = Task("tensorrt-rtx", pruned, pruned.manifest.graph("step_03"))
    every = [place.tensor for place in places(with_outputs(task.path, ()))]
    feed = record(pruned, task.graph, request_for(pruned))
    own = build_watched(task, (), feed, "sm86")
    assert build_watched(task, every, feed, "sm86") != own
