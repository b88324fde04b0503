"""The demo model's graphs, in full and with FastVAR, all parse and build for three generations of RTX cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.targets import build, settings_of

from nextscale.export.bundle import Options, write_graphs, write_manifest
from nextscale.export.checkpoint import load_checkpoint
from nextscale.plan.recipes import plan_for, recipe
from nextscale.plugins.signature import DOMAIN, NAME
from nextscale.runtime.backends.tensorrt.engine import Job
from nextscale.runtime.backends.tensorrt.lift import external_weights, read_graph
from nextscale.runtime.backends.tensorrt.process import Builder
from nextscale.runtime.bundle import Bundle, open_bundle
from nextscale.runtime.manifest import Graph, Recipe
from nextscale.runtime.targets import open_target

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "demo"
pytestmark = pytest.mark.timeout(600)  # tracing the whole model comes first


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Both bundles as the exporter writes them, not verified again; pieces that they share are traced once."""
    checkpoint = load_checkpoint(CHECKPOINT / "var.safetensors", CHECKPOINT / "vae.safetensors")
    bundles, traced = {}, dict[Any, Any]()
    for name in ("demo", "demo-fastvar"):
        chosen = recipe(name)
        plan = plan_for(chosen, checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)
        folder = tmp_path_factory.mktemp("engines") / name
        folder.mkdir()
        options = Options(plan, Recipe(chosen.name, chosen.version))
        weights = write_graphs(checkpoint, options, folder, lambda *progress: None, traced)
        write_manifest(folder, name, checkpoint, options, weights, ())
        bundles[name] = open_bundle(folder)
    return bundles


def code(bundle: Bundle, graph: Graph) -> list[bytes]:
    """What a graph does, wherever its weights lie in their file."""
    return [node.SerializeToString() for node in read_graph(bundle.path(graph.file)).graph.node]


@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
def test_every_graph_parses_and_builds(demo: dict[str, Bundle], target: str, tmp_path: Path) -> None:
    """The pruned bundle as a whole; of the full one the graphs that pruning changes, the others do the same."""
    full, pruned = demo["demo"], demo["demo-fastvar"]
    report = build(pruned.folder, tmp_path / "targets", settings_of(pruned.folder, target))
    opened = open_target(report.folder, pruned)
    largest = max(pruned.manifest.files[w.file].size for w in pruned.manifest.weights.values())
    for graph in pruned.manifest.graphs:
        engine = opened.engine(graph.name)
        assert engine.layers > 10
        assert engine.plugin_layers == 0
        assert engine.size < largest  # no weights inside
    pairs = zip(full.manifest.graphs, pruned.manifest.graphs, strict=True)
    others = [mine for mine, theirs in pairs if code(full, mine) != code(pruned, theirs)]
    assert 0 < len(others) < len(full.manifest.graphs)
    with Builder(settings_of(full.folder, target)) as builder:
        for graph in others:
            out = tmp_path / f"{graph.name}.engine"
            job = Job(graph, full.manifest.guidance_rows, str(full.path(graph.file)), str(out), None)
            assert builder.build(job, lambda done, phase: None).layers > 10
            assert out.stat().st_size > 100_000


def test_the_graphs_have_what_engines_are_tried_on(demo: dict[str, Bundle]) -> None:
    """Fused attention in every step, restoring nodes where the plan prunes, and every weight outside."""
    pruned = demo["demo-fastvar"]
    for step, graph in zip(pruned.manifest.plan.steps, pruned.manifest.steps, strict=True):
        model = read_graph(pruned.path(graph.file))
        kinds = [(node.domain, node.op_type) for node in model.graph.node]
        layers = sum(bool(layer.sub_layers) for layer in step.layers)
        assert kinds.count(("com.microsoft", "MultiHeadAttention")) == layers
        kept = sum(sub.kept is not None for layer in step.layers for sub in layer.sub_layers)
        assert kinds.count((DOMAIN, NAME)) == kept
        inside = [t for t in model.graph.initializer if t.name not in external_weights(model)]
        assert sum(len(t.raw_data) for t in inside) < 100_000
    assert any(sub.kept for step in pruned.manifest.plan.steps for layer in step.layers for sub in layer.sub_layers)
