"""What the benchmark of exported graphs reads out of a bundle is what the eager model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

for needed in ("torch", "onnx", "onnxruntime", "matplotlib"):
    pytest.importorskip(needed)

import bench_precision_graphs as bench  # noqa: E402
import torch  # noqa: E402
from precision_tables import graphs_table  # noqa: E402
from support import tiny  # noqa: E402

from nextscale.export.checkpoint import load_checkpoint  # noqa: E402
from nextscale.export.eager import Eager, Request  # noqa: E402
from nextscale.plan.recipes import plan_for, recipe  # noqa: E402
from nextscale.runtime import Pipeline  # noqa: E402


def eager_of(files: tuple[Path, Path]) -> Eager:
    checkpoint = load_checkpoint(*files)
    numbers = (checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)
    return Eager(plan_for(recipe("var-d16"), *numbers, tiny.SAMPLING), checkpoint.var, checkpoint.vae)


def test_float32_graphs_do_not_drift(tiny_checkpoint: tuple[Path, Path], tiny_bundle: Path) -> None:
    eager, request = eager_of(tiny_checkpoint), Request([1, 3], seed=5, guidance_scale=2.0, top_p=0.9)
    exact, run = eager.generate(request)
    wanted = [one.prediction for one in run]
    with Pipeline.open(tiny_bundle, batch_sizes=[2], threads=1) as pipeline:
        floats, got = bench.run_graphs(pipeline, eager, request, wanted)
        others = [truth._replace(tokens=torch.zeros_like(truth.tokens)) for truth in wanted]
        forced = bench.run_graphs(pipeline, eager, request, others)[1]
        row = bench.measure(pipeline, eager, pictures=3, batch=2)
    np.testing.assert_allclose(floats, exact, atol=1e-4)
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(b.logits, a.logits, rtol=0, atol=1e-4)
        assert torch.equal(a.tokens, b.tokens)
    assert torch.equal(forced[0].tokens, wanted[0].tokens), "its own draws, not the forced tokens"
    assert not torch.allclose(forced[1].logits, wanted[1].logits, atol=1e-4)
    assert row["rms"] < 1e-5 < 0.99 < row["equal_forced"]
    assert row["pixels"] < 0.01
    named = {"recipe": "full", "precision": "fp32", "by": "onnxruntime on cpu"}
    table = graphs_table({"settings": {"pictures": 4}, "graphs": [named | row]})
    assert "| full, fp32 | onnxruntime on cpu |" in table
