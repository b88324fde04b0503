"""How text of a static length is best attended to: a mask, lanes of the keys that hide, or nothing to hide.

    python benchmarks/bench_text_tokens.py

The cross-attention of Infinity's 125M at 64x64 tokens in ONNX Runtime, two rows, by the longest text that a graph is
made for; the text itself has 40 tokens. All ways run by turns in one process. Results go to
``results/text_tokens.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from nextscale.compare.machine import this_machine
from nextscale.plan.conditioning import MASK_LANES

RESULTS = Path(__file__).parent / "results"
ROWS, HEADS, HEAD_DIM, TEXT = 2, 8, 96, 40
WAYS = ("nothing hidden", "mask", "lanes")


def model_of(way: str, queries: int, tokens: int) -> bytes:
    """One attention node, with what its way takes."""
    width = HEADS * (HEAD_DIM + MASK_LANES * (way == "lanes"))
    shapes = {"q": (ROWS, queries, width), "k": (ROWS, tokens, width), "v": (ROWS, tokens, width)}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    if way == "mask":
        inputs.append(helper.make_tensor_value_info("length", TensorProto.INT32, (ROWS,)))
    names = ["q", "k", "v", *(("", "length") if way == "mask" else ())]
    node = helper.make_node(
        "MultiHeadAttention", names, ["out"], domain="com.microsoft", num_heads=HEADS, scale=HEAD_DIM**-0.5
    )
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, (ROWS, queries, width))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph([node], "attention", inputs, [out]), opset_imports=opsets, ir_version=10
    )
    return bytes(model.SerializeToString())


def case(way: str, queries: int, tokens: int, threads: int) -> tuple[ort.InferenceSession, dict[str, Any]]:
    """A session and its inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model_of(way, queries, tokens), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {
        i.name: rng.standard_normal(i.shape, np.float32) for i in session.get_inputs() if i.name != "length"
    }
    if way == "mask":
        feed["length"] = np.full(ROWS, TEXT, np.int32)
    return session, feed


def measure(queries: int, lengths: list[int], runs: int, threads: int) -> list[dict[str, Any]]:
    """Milliseconds of every way at every length, by turns; the first round is not counted."""
    cases = {(way, n): case(way, queries, n, threads) for n in lengths for way in WAYS}
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in cases}
    for run in range(runs + 1):
        for key, (session, feed) in cases.items():
            start = time.perf_counter()
            session.run(None, feed)
            if run:
                taken[key].append((time.perf_counter() - start) * 1e3)
    rows = []
    for (way, n), times in taken.items():
        low, _, high = quantiles(times, n=4)
        rows.append({"way": way, "tokens": n, "ms": median(times), "quartiles": [low, high]})
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "text_tokens.json")
    asked = parser.parse_args(arguments)
    rows = measure(asked.queries, asked.lengths, asked.runs, asked.threads)
    report = {
        "what": f"attention of {asked.queries} queries to a text of {TEXT} tokens, {ROWS} rows, float32, milliseconds",
        "threads": asked.threads,
        "runs": asked.runs,
        "machine": asdict(this_machine()),
        "rows": rows,
    }
    asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print(f"{row['way']:<16} {row['tokens']:>4} tokens  {row['ms']:8.1f} ms")


if __name__ == "__main__":
    main()
