"""What this machine reaches at a plan's own shapes, in matrix products by either library and in copying: a roofline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from nextscale.plan.cost import plan_cost
from nextscale.plan.devices import Device, cpu
from nextscale.plan.types import Model, Plan

COPIED = 256_000_000  # bytes, far beyond any cache


def matrices(model: Model) -> dict[str, tuple[int, int]]:
    """The blocks' matrices, by outputs and inputs; cross-attention's two are as large as ``proj``."""
    width, hidden = model.width, model.ffn_width
    return {"mat_qkv": (3 * width, width), "proj": (width, width), "fc1": (hidden, width), "fc2": (width, hidden)}


def rates(plan: Plan, threads: int, repeat: int = 5) -> dict[str, Any]:
    """GFLOP/s of each matrix at the plan's longest step, all rows; GB/s of copying, bytes read and written counted."""
    rows, model = max(step.rows * step.tokens_in for step in plan.steps), plan.model()
    products = []
    for name, (n_out, n_in) in matrices(model).items():
        x, weight, bias = torch.randn(rows, n_in), torch.randn(n_out, n_in), torch.randn(n_out)
        flops = 2 * rows * n_in * n_out
        seconds = {
            "torch": median(partial(torch.nn.functional.linear, x, weight, bias), repeat),
            "onnxruntime": median(_session(x, weight, bias, threads), repeat),
        }
        reached = {library: flops / each / 1e9 for library, each in seconds.items()}
        products.append({"matrix": name, "rows": rows, "in": n_in, "out": n_out, "flops": flops, "gflops": reached})
    source = torch.zeros(COPIED // 4)
    target = torch.zeros_like(source)
    return {"products": products, "gbytes": 2 * COPIED / median(lambda: target.copy_(source), repeat) / 1e9}


def reached(found: dict[str, Any]) -> Device:
    """The machine by those rates: all four products, one after the other, by the faster library."""
    flops = sum(product["flops"] for product in found["products"])
    time_of = {
        library: sum(product["flops"] / product["gflops"][library] for product in found["products"])
        for library in found["products"][0]["gflops"]
    }
    return cpu(flops / min(time_of.values()), found["gbytes"])


def roofline(plan: Plan, machine: Device, text_tokens: int | None = None) -> dict[str, Any]:
    """Seconds of ``begin``, of each step, of both together and of ``decode`` for one picture in float32.

    ``text_tokens`` is the length of its text, None for what the plan has room for, or for a class.
    """
    model = plan.model()
    if text_tokens is not None and model.text is not None:
        model = replace(model, text=replace(model.text, tokens=text_tokens))
    cost = plan_cost(replace(plan, models=((plan.models[0][0], model),)), 1, "fp32")
    begin, *steps, decode = (machine.seconds(g.total_flops, g.total_bytes, "fp32") for g in cost.graphs)
    return {"begin": begin, "steps": steps, "total": begin + sum(steps), "decode": decode}


def median(work: Callable[[], object], repeat: int) -> float:
    """Seconds of ``work``, after one run that does not count."""
    work()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _session(x: Tensor, weight: Tensor, bias: Tensor, threads: int) -> Callable[[], object]:
    """The product as a step graph has it, with the runtime's settings."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), len(weight)])]
    known = [onnx.numpy_helper.from_array(t.numpy(), name) for name, t in (("w", weight), ("b", bias))]
    graph = helper.make_graph(nodes, "product", given, made, known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out, binding = np.empty((len(x), len(weight)), np.float32), session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, list(x.shape), x.data_ptr())
    binding.bind_output("y", "cpu", 0, np.float32, list(out.shape), out.ctypes.data)
    held = x, out  # the binding knows addresses alone

    def work() -> object:
        session.run_with_iobinding(binding)
        return held

    return work
