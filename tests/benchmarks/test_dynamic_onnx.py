"""The model by hand, of dynamic lengths, is the same model; its sampler draws what the filters let through."""

from __future__ import annotations

from pathlib import Path

import pytest

for needed in ("torch", "onnx", "onnxruntime"):
    pytest.importorskip(needed)

import numpy as np  # noqa: E402
from dynamic_onnx import export_dynamic  # noqa: E402
from dynamic_session import drawn  # noqa: E402
from suite_faces import DynamicSide  # noqa: E402
from support.drawn import drawn_eager, full_plan  # noqa: E402
from upstream_var import UpstreamVAR  # noqa: E402

from nextscale.compare.sides import Ask, EagerSide  # noqa: E402

pytestmark = pytest.mark.timeout(600)  # tracing


def test_it_is_the_same_model(tmp_path: Path) -> None:
    plan = full_plan()
    eager = drawn_eager(plan)
    ask = Ask((3, 1), 5, 4.0, 0.95, 0.8)
    wanted = EagerSide(eager).run(ask, logits=True)
    model = UpstreamVAR.over(plan, eager.var.state_dict(), eager.vae.state_dict())
    side = DynamicSide(export_dynamic(model, tmp_path / "dynamic"), plan, 1)
    assert {path.name for path in (tmp_path / "dynamic").glob("*.onnx")} == {"step.onnx", "codes.onnx", "decode.onnx"}
    for images in (2, 1):  # rows are dynamic as well
        tokens = tuple(each[:images] for each in wanted.tokens)
        made = side.run(Ask((3, 1)[:images], 5, 4.0, 0.95, 0.8, tokens), logits=True)
        for mine, theirs in zip(wanted.logits, made.logits, strict=True):
            assert np.abs(theirs - mine[:images]).max() <= 1e-4 * max(1.0, mine.std())
        np.testing.assert_allclose(made.pictures, wanted.pictures[:images], atol=1e-4)
    free = side.run(ask)
    assert [each.shape for each in free.tokens] == [each.shape for each in wanted.tokens]
    assert free.total >= sum(free.seconds.values())


def test_what_is_drawn_passes_the_filters() -> None:
    logits = np.log(np.array([[[0.5, 0.3, 0.15, 0.05]]], np.float32)).repeat(4000, axis=1)
    random = np.random.default_rng(1)
    shares = [
        np.bincount(drawn(logits, top_k, top_p, random)[0], minlength=4) / 4000
        for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.75), (3, 0.1))
    ]
    wanted = [[0.5, 0.3, 0.15, 0.05], [0.625, 0.375, 0, 0], [0.625, 0.375, 0, 0], [1, 0, 0, 0]]
    np.testing.assert_allclose(shares, wanted, atol=0.03)
    assert all(((share == 0) == (np.array(one) == 0)).all() for share, one in zip(shares, wanted, strict=True))
