"""Registers the plugin with TensorRT's real Python bindings and prints, as JSON, what became of it.

Runs in a process of its own (``python plugin_definition.py``), because the libraries that it loads are TensorRT-RTX's,
found under TensorRT's names: enough for the bindings' own checks of a plugin's definition, and for the parser to look
it up. They build nothing with it. Expressions of lengths, which only a builder makes, are numbers.
"""

from __future__ import annotations

import json
import operator
import sys
from types import SimpleNamespace
from typing import Any, ClassVar

import tensorrt_bindings as trt
from support.one_node import SHAPES, one_node

sys.modules["tensorrt"] = trt  # as the bindings name themselves
from tensorrt_bindings.plugin._tensor import SymIntExpr  # noqa: E402

from nextscale.plugins import kernel  # noqa: E402
from nextscale.plugins.signature import DOMAIN, INPUTS, NAME, PLUGIN_ATTRIBUTES  # noqa: E402
from nextscale.plugins.tensorrt_plugin import register  # noqa: E402
from nextscale.runtime.backends.nvrtc import compile_ptx  # noqa: E402

TYPES, OPERATION = trt.DataType, trt.DimensionOperation
DTYPES = dict.fromkeys(INPUTS, TYPES.FLOAT) | {"index": TYPES.INT32}


class Number(trt.IDimensionExpr):  # type: ignore[misc]
    """A length that is known; made by :func:`number`, since the class has no constructor."""

    value: int

    def is_constant(self) -> bool:
        return True

    def get_constant_value(self) -> int:
        return self.value


def number(value: int) -> Number:
    made: Number = Number.__new__(Number)
    made.value = value
    return made


class Numbers:
    """What TensorRT's builder of expressions does, done at once."""

    operations: ClassVar = {
        OPERATION.SUM: operator.add,
        OPERATION.PROD: operator.mul,
        OPERATION.FLOOR_DIV: operator.floordiv,
    }

    def constant(self, value: int) -> Number:
        return number(value)

    def operation(self, kind: Any, first: Number, second: Number) -> Number:
        return number(self.operations[kind](first.value, second.value))


def parsed() -> dict[str, Any]:
    """What the parser makes of a model of one node that carries the function too."""
    model = one_node(SHAPES)
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    accepted = parser.parse(model.SerializeToString())
    errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    return {"accepted": accepted, "layers": network.num_layers, "errors": errors}


def made(definition: Any, part: Any, full: Any) -> dict[str, Any]:
    """A plugin as the library would make it, asked what it is asked in a build, for one pair of dtypes."""
    creator = trt.get_plugin_registry().get_creator(NAME, PLUGIN_ATTRIBUTES["plugin_version"], DOMAIN)
    asked = trt.QuickPluginCreationRequest.UNKNOWN  # as the parser does for a node that says nothing of it
    nothing = trt.PluginFieldCollection([])
    plugin = creator.create_plugin(NAME, DOMAIN, nothing, trt.TensorRTPhase.BUILD, asked)
    dtypes = list((DTYPES | {"kept": part, "cache": part, "residual": full}).values())
    (output,) = plugin.get_output_data_types(dtypes, [len(shape) for shape in SHAPES.values()])
    lengths = [[number(length) for length in shape] for shape in SHAPES.values()]
    plugin.get_output_shapes(lengths, [], Numbers())
    descriptions = []
    for dtype, shape in zip([*dtypes, output], [*SHAPES.values(), SHAPES["residual"]], strict=True):
        description = trt.DynamicPluginTensorDesc()
        description.desc.type, description.desc.dims = dtype, shape
        description.desc.format = trt.TensorFormat.LINEAR
        descriptions.append(description)
    supported = plugin.get_supported_format_combinations(descriptions, len(INPUTS))
    pairs = [supported[i : i + 7] for i in range(0, len(supported), 7)]

    class Extra(dict[int, Any]):
        nbSymExprs = 0

    plugin.set_tactic(0)
    launch, extra = SimpleNamespace(), Extra()
    plugin.get_launch_params(None, descriptions, len(INPUTS), launch, extra, Numbers())
    described = [description.desc for description in descriptions]
    name, ptx = plugin.get_kernel(described[: len(INPUTS)], described[len(INPUTS) :])

    # The same once more, past the wrapping that takes expressions away.
    SymIntExpr._exprBuilder = Numbers()
    _, _, parameters, arguments = definition.aot_impl_func(*plugin.input_descs, plugin.output_descs, 0)
    axes = [getattr(parameters, f"{what}_{axis}") for what in ("grid", "block") for axis in "xyz"]
    return {
        "kind": type(plugin).__name__,
        "output": output.name,
        "output_shape": [length._expr.value for length in plugin.output_descs[0].shape_expr],
        "kernel": name,
        "ptx_is_the_compiler_s": ptx == compile_ptx(kernel.source(), kernel.FILE, options=options_of(part, full)),
        "extra_arguments": extra.nbSymExprs,
        "extents": [axis._expr.value for axis in axes],
        "scalars": [argument._expr.value for argument in arguments],
        "supported": [[entry.type.name for entry in pair] for pair in pairs],
    }


def options_of(part: Any, full: Any) -> tuple[str, ...]:
    names = {TYPES.FLOAT: "float32", TYPES.HALF: "float16", TYPES.BF16: "bfloat16"}
    return kernel.options(names[part], names[full])


def main() -> None:
    report: dict[str, Any] = {"version": trt.__version__, "without": parsed()}
    register(trt, compile_ptx)
    register(trt, compile_ptx)  # again is nothing
    definition = sys.modules["tensorrt_bindings.plugin"].op.nextscale.ScatterRestore
    report["inputs"] = definition.input_tensor_names
    kinds = (TYPES.FLOAT, TYPES.HALF, TYPES.BF16)
    report["made"] = {f"{part.name}-{full.name}": made(definition, part, full) for part in kinds for full in kinds}
    report["with"] = parsed()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
