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
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from nextscale.plan.cost import GraphCost, plan_cost
from nextscale.plan.devices import Device, cpu
from nextscale.plan.types import Model, Plan

COPIED = 256_000_000  # bytes, far beyond any cache


def matrices(model: Model) -> dict[str, tuple[int, int]]:
    """The blocks' matrices, by outputs and inputs; cross-attention's two are as large as ``proj``."""
    width, hidden = model.width, model.ffn_width
    return {"mat_qkv": (3 * width, width), "proj": (width, width), "fc1": (hidden, width), "fc2": (width, hidden)}


def rates(plan: Plan, threads: int, repeat: int = 5, integers: bool = False) -> dict[str, Any]:
    """GFLOP/s of each matrix at the plan's longest step, all rows; GB/s of copying, bytes read and written counted.

    With ``integers`` also what ONNX Runtime reaches in products of int8: ``int8_gflops``.
    """
    rows, model = max(step.rows * step.tokens_in for step in plan.steps), plan.model()
    products = []
    for name, (n_out, n_in) in matrices(model).items():
        x, weight, bias = torch.randn(rows, n_in), torch.randn(n_out, n_in), torch.randn(n_out)
        flops = 2 * rows * n_in * n_out
        seconds = {
            "torch": median(partial(torch.nn.functional.linear, x, weight, bias), repeat),
            "onnxruntime": median(_session(*_product(x, weight, bias), threads), repeat),
        }
        reached = {library: flops / each / 1e9 for library, each in seconds.items()}
        product = {"matrix": name, "rows": rows, "in": n_in, "out": n_out, "flops": flops, "gflops": reached}
        if integers:
            product["int8_gflops"] = flops / median(_session(*_whole_product(rows, n_in, n_out), threads), repeat) / 1e9
        products.append(product)
    source = torch.zeros(COPIED // 4)
    target = torch.zeros_like(source)
    return {"products": products, "gbytes": 2 * COPIED / median(lambda: target.copy_(source), repeat) / 1e9}


def reached(found: dict[str, Any]) -> Device:
    """The machine by those rates: all four products, one after the other, by the faster library; int8's if measured."""
    products = found["products"]
    flops = sum(product["flops"] for product in products)
    time_of = {
        library: sum(product["flops"] / product["gflops"][library] for product in products)
        for library in products[0]["gflops"]
    }
    device = cpu(flops / min(time_of.values()), found["gbytes"])
    if "int8_gflops" not in products[0]:
        return device
    whole = flops / sum(product["flops"] / product["int8_gflops"] for product in products)
    return replace(device, tflops={**device.tflops, "int8": whole / 1e3})


def roofline(plan: Plan, machine: Device, text_tokens: int | None = None, precision: str = "fp32") -> dict[str, Any]:
    """Seconds of ``begin``, of each step, of both together and of ``decode`` for one picture.

    ``text_tokens`` is the length of its text, None for what the plan has room for, or for a class. ``precision`` is
    ``fp32`` or ``int8``.
    """
    model = plan.model()
    if text_tokens is not None and model.text is not None:
        model = replace(model, text=replace(model.text, tokens=text_tokens))
    cost = plan_cost(replace(plan, models=((plan.models[0][0], model),)), 1, precision)
    begin, *steps, decode = (_seconds(graph, machine, precision) for graph in cost.graphs)
    return {"begin": begin, "steps": steps, "total": begin + sum(steps), "decode": decode}


def _seconds(graph: GraphCost, machine: Device, precision: str) -> float:
    """Linear layers at the rate of ``precision``, all else at float32's; or the traffic, which takes longer."""
    linear = graph.flops.get("linear", 0.0)
    rate, rest = machine.tflops[precision], graph.total_flops - linear
    work = linear / rate + rest / machine.tflops["fp32"]
    return max(work / 1e12, graph.total_bytes / (machine.bandwidth * 1e9))


def median(work: Callable[[], object], repeat: int) -> float:
    """Seconds of ``work``, after one run that does not count."""
    work()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


Product = tuple[onnx.NodeProto, NDArray[Any], dict[str, NDArray[Any]], int]  # node, its "x", its weights, columns


def _product(x: Tensor, weight: Tensor, bias: Tensor) -> Product:
    """The product as a step graph has it."""
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    return node, x.numpy(), {"w": weight.numpy(), "b": bias.numpy()}, len(weight)


def _whole_product(rows: int, n_in: int, n_out: int) -> Product:
    """The product of integers of a step graph in int8, without what makes activations integers."""
    drawn = np.random.default_rng(0)
    names = ["x", "w", "step", "scale", "zero"]
    known = {
        "w": drawn.integers(-64, 65, (n_in, n_out), np.int8),
        "step": np.array(1 / 127, np.float32),
        "scale": np.full(n_out, 0.01, np.float32),
        "zero": np.array(128, np.uint8),
    }
    node = helper.make_node("MatMulIntegerToFloat", names, ["y"], domain="com.microsoft")
    return node, drawn.integers(0, 256, (rows, n_in), np.uint8), known, n_out


def _session(
    node: onnx.NodeProto, x: NDArray[Any], known: dict[str, NDArray[Any]], columns: int, threads: int
) -> Callable[[], object]:
    """A product alone, with the runtime's settings."""
    given = [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), list(x.shape))]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(x), columns])]
    weights = [onnx.numpy_helper.from_array(value, name) for name, value in known.items()]
    graph = helper.make_graph([node], "product", given, made, weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out, binding = np.empty((len(x), columns), np.float32), session.io_binding()
    binding.bind_input("x", "cpu", 0, x.dtype, list(x.shape), x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, list(out.shape), out.ctypes.data)
    held = x, out  # the binding knows addresses alone

    def work() -> object:
        session.run_with_iobinding(binding)
        return held

    return work
