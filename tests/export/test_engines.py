"""One engine of an exported graph: what is checked after its parse, and the forms that a parser may need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.targets import settings_of

from nextscale.plugins.signature import DOMAIN, NAME
from nextscale.runtime.backends.tensorrt import engine
from nextscale.runtime.backends.tensorrt.engine import Built, Job, Stopped, build_engine
from nextscale.runtime.backends.tensorrt.library import load
from nextscale.runtime.backends.tensorrt.lift import read_graph
from nextscale.runtime.bundle import Bundle, open_bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.targets.manifest import Plugin, Settings


@pytest.fixture
def pruned(tiny_pruned_bundle: Path) -> Bundle:
    return open_bundle(tiny_pruned_bundle, verify="size")


def built(bundle: Bundle, out: Path, settings: Settings, graph: str = "step_03", stop: bool = False) -> Built:
    signature = bundle.manifest.graph(graph)
    job = Job(signature, bundle.manifest.guidance_rows, str(bundle.path(signature.file)), str(out), None)
    return build_engine(load("tensorrt-rtx"), settings, job, lambda done, phase: None, lambda: stop)


def test_restoring_nodes_are_inlined_and_no_layer_is_a_plugin(pruned: Bundle, tmp_path: Path) -> None:
    model = read_graph(pruned.path("step_03.onnx"))
    assert sum((node.domain, node.op_type) == (DOMAIN, NAME) for node in model.graph.node) > 0
    found = built(pruned, tmp_path / "a.engine", settings_of(pruned.folder))
    assert (found.plugin_layers, found.scratch) == (0, None)
    assert found.layers > len(model.graph.node)
    assert (tmp_path / "a.engine").stat().st_size > 100_000


def test_asked_for_a_plugin_that_the_parser_does_not_find_the_build_fails(pruned: Bundle, tmp_path: Path) -> None:
    plugin = {"plugin": Plugin(NAME, DOMAIN, "1"), "kernel_sha256": "0" * 64}
    settings = replace(settings_of(pruned.folder), restore="plugin", **plugin)
    with pytest.raises(
        BackendError, match=r"step_03 was parsed with 0 plugin layers and should have \d: the plugin is"
    ):
        built(pruned, tmp_path / "a.engine", settings)
    assert built(pruned, tmp_path / "b.engine", settings, "step_00").plugin_layers == 0  # nothing is pruned in it


def test_a_parser_without_fused_attention_gets_the_plain_form(
    pruned: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = built(pruned, tmp_path / "a.engine", settings_of(pruned.folder))
    monkeypatch.setattr(engine, "ATTENTION", "SomethingElse")  # which no parser supports
    plain = built(pruned, tmp_path / "b.engine", settings_of(pruned.folder))
    assert plain.layers != fused.layers


def test_a_build_that_was_told_to_stop_writes_nothing(pruned: Bundle, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        built(pruned, tmp_path / "a.engine", settings_of(pruned.folder), stop=True)
    assert not (tmp_path / "a.engine").exists()


def test_what_a_builder_refuses_is_said_with_its_reason(tiny_pruned_bundle: Path, tmp_path: Path) -> None:
    """Turing: TensorRT-RTX compiles no float32 product for it, and says so only in its log."""
    from support.targets import build

    with pytest.raises(BackendError, match=r"cannot build .* for sm75: .*not supported"):
        build(tiny_pruned_bundle, tmp_path, settings_of(tiny_pruned_bundle, "sm75"))
