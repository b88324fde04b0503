"""The benchmark of hiding what stands behind a text: all ways give the same."""

from __future__ import annotations

import json
from pathlib import Path

import bench_text_tokens as bench
import numpy as np

from nextscale.plan.conditioning import MASK_LANES


def test_lanes_hide_what_a_mask_hides() -> None:
    masked, given = bench.case("mask", 12, 64, 1)
    lanes, feed = bench.case("lanes", 12, 64, 1)
    shape = (bench.ROWS, -1, bench.HEADS, bench.HEAD_DIM)
    q, k = (given[name].reshape(shape) for name in "qk")
    hidden = np.where(np.arange(64) < bench.TEXT, 0.0, -4096.0)[None, :, None, None].astype(np.float32)
    wide_k = np.concatenate([k, np.broadcast_to(hidden, (*k.shape[:3], MASK_LANES))], axis=-1)
    wide_q = np.concatenate([q, np.ones((*q.shape[:3], MASK_LANES), np.float32)], axis=-1)
    wide_v = np.pad(given["v"].reshape(shape), ((0, 0), (0, 0), (0, 0), (0, MASK_LANES)))
    feed |= {name: wide.reshape(feed[name].shape) for name, wide in zip("qkv", (wide_q, wide_k, wide_v), strict=True)}
    found = lanes.run(None, feed)[0].reshape(wide_q.shape)[..., : bench.HEAD_DIM]
    np.testing.assert_allclose(found, masked.run(None, given)[0].reshape(shape), atol=1e-5)


def test_a_small_run_writes_its_report(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    bench.main(["--queries", "8", "--lengths", "64", "--runs", "2", "--threads", "1", "--out", str(out)])
    report = json.loads(out.read_text())
    assert {(row["way"], row["tokens"]) for row in report["rows"]} == {(way, 64) for way in bench.WAYS}
