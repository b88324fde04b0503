"""The ScatterRestore kernel on a GPU: against copying as many bytes, and against its plain ONNX form.

    python benchmarks/bench_scatter_restore.py [--dtypes float16,float32 ...] [--runs 30]

By turns, in one process: launches of the kernel and copies of as many bytes, both in captured graphs; then the
function's standard operators as ONNX Runtime's CUDA provider runs them, its own launches included. `share` is the
kernel's part of the copies' bandwidth; the aim is 0.8 or more. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from nextscale.compare.latency import Times, times
from nextscale.compare.machine import this_machine
from nextscale.compare.restore_speed import SIZES, Buffers, Size, Speed, by_turns, measure
from nextscale.plugins.kernel import DTYPES, source_hash
from nextscale.plugins.onnx_function import attach
from nextscale.plugins.signature import DOMAIN, INPUTS, NAME, PLUGIN_ATTRIBUTES
from nextscale.runtime.backends.cuda import Device, open_device, versions
from nextscale.runtime.backends.onnxruntime import TYPES, check_provider, errors_of, first_line, import_onnxruntime
from nextscale.runtime.backends.onnxruntime_slot import PROVIDER, provider_options
from nextscale.runtime.errors import BackendError

RESULTS = Path(__file__).parent / "results"
AIM = 0.8
# The residual stream is float32 in every bundle; the others are for models whose stream is not.
PAIRS = ("float16,float32", "bfloat16,float32", "float32,float32", "float16,float16", "bfloat16,bfloat16")
SETS = 4  # of the plain form's buffers
ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int32": TensorProto.INT32,
}


def dtypes_of(part: str, full: str) -> dict[str, str]:
    """Of the six inputs."""
    return dict.fromkeys(INPUTS, "float32") | {"kept": part, "index": "int32", "cache": part, "residual": full}


def one_node(size: Size, part: str, full: str) -> onnx.ModelProto:
    """The operator by itself, which ONNX Runtime takes as its function."""
    dtypes = dtypes_of(part, full)
    infos = [helper.make_tensor_value_info(n, ONNX_TYPES[dtypes[n]], size.shapes[n]) for n in INPUTS]
    result = helper.make_tensor_value_info("result", ONNX_TYPES[full], size.shapes["residual"])
    node = helper.make_node(NAME, list(INPUTS), ["result"], domain=DOMAIN, **PLUGIN_ATTRIBUTES)
    graph = helper.make_graph([node], "restore", infos, [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    attach(model)
    return model


def plain_form(device: Device, size: Size, part: str, full: str, runs: int) -> Times:
    """Seconds of the function in ONNX Runtime. Raises :class:`BackendError` where it cannot run there."""
    ort = import_onnxruntime()
    check_provider(ort)
    stream = device.stream()
    settings = provider_options(device.ordinal, stream.handle, captured=False)
    alone = ort.RunOptions()
    alone.add_run_config_entry("disable_synchronize_execution_providers", "1")
    sets = [Buffers(device, stream, size, part, full, seed) for seed in range(SETS)]
    try:
        model = one_node(size, part, full).SerializeToString()
        session = ort.InferenceSession(model, providers=[(PROVIDER, settings)], enable_fallback=0)
        bindings = []
        for buffers in sets:
            binding = session.io_binding()
            for name, dtype in dtypes_of(part, full).items():
                place = (device.ordinal, TYPES[dtype][1], size.shapes[name], buffers.addresses[name])
                binding.bind_input(name, "cuda", *place)
            place = (device.ordinal, TYPES[full][1], size.shapes["residual"], buffers.addresses["result"])
            binding.bind_output("result", "cuda", *place)
            bindings.append(binding)

        def run_all() -> None:
            for binding in bindings:
                session.run_with_iobinding(binding, alone)

        (seconds,) = by_turns(stream, [run_all], runs)
    except errors_of(ort) as error:
        raise BackendError(f"ONNX Runtime cannot run the plain form: {first_line(error)}") from error
    finally:
        for buffers in sets:
            buffers.block.free()
    return times([total / SETS for total in seconds])


def row_of(speed: Speed, plain: Times | str) -> dict[str, Any]:
    """For the JSON; ``plain`` may be why it was not measured."""
    return {
        "size": asdict(speed.size),
        "part": speed.part,
        "full": speed.full,
        "bytes": speed.moved,
        "kernel": asdict(speed.kernel),
        "copy": asdict(speed.copy),
        "share": round(speed.share, 3),
        "plain": plain if isinstance(plain, str) else asdict(plain),
    }


def show(row: dict[str, Any]) -> str:
    """One line of the table, in microseconds with quartiles, and GB/s."""

    def spread(found: dict[str, float]) -> str:
        return f"{found['median'] * 1e6:7.1f} ({found['low'] * 1e6:.1f} to {found['high'] * 1e6:.1f})"

    rate = row["bytes"] / row["kernel"]["median"] * 1e-9
    plain = row["plain"] if isinstance(row["plain"], str) else spread(row["plain"])
    met = "" if row["share"] >= AIM else "  BELOW THE AIM"
    return (
        f"{row['size']['name']:28} {row['part']:>8} {row['full']:>8} {spread(row['kernel']):>26} "
        f"{spread(row['copy']):>26} {rate:7.0f} {row['share']:6.2f} {plain}{met}"
    )


def measured(device: Device, pairs: Sequence[str], runs: int) -> list[dict[str, Any]]:
    """Every size in every pair of dtypes, told as they come."""
    print(f"{'size':28} {'kept':>8} {'stream':>8} {'kernel us':>26} {'copy us':>26} {'GB/s':>7} {'share':>6} plain us")
    rows = []
    for pair in pairs:
        part, full = pair.split(",")
        for size in SIZES:
            speed = measure(device, size, part, full, runs)
            try:
                plain: Times | str = plain_form(device, size, part, full, runs)
            except BackendError as why:
                plain = str(why)
            rows.append(row_of(speed, plain))
            print(show(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measures, prints a table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [f"{part},{full}" for part in DTYPES for full in DTYPES]
    parser.add_argument("--dtypes", nargs="+", default=PAIRS, choices=every, metavar="PART,FULL")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS / "scatter_restore.json")
    options = parser.parse_args()
    try:
        device = open_device()
    except BackendError as why:
        print(f"nothing measured: the kernel needs an NVIDIA GPU ({why})")
        return
    machine = this_machine()
    setup = {"gpu": device.name, "sm": device.sm, "driver": device.driver, **versions()}
    print(f"{setup}; {machine.versions}; medians of {options.runs} runs (quartiles)")
    rows = measured(device, options.dtypes, options.runs)
    found = {"machine": asdict(machine), **setup, "kernel_sha256": source_hash(), "aim": AIM, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
