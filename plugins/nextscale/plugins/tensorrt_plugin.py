"""ScatterRestore as a plugin of TensorRT: a quickly deployable one, whose kernel goes into the engine as PTX.

So an engine with it runs where neither this package nor Python is. It is found under the name and namespace of the ONNX
function. TensorRT keeps no attributes of such plugins, and this has none: every length comes from the inputs' shapes.

TensorRT reads the annotations of what it is given as objects, so they are set here: in this file, as in all others,
written ones are only text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol

from nextscale.plugins import kernel
from nextscale.plugins.signature import DOMAIN, INPUTS, NAME, ScatterRestoreError

PLUGIN_ID = f"{DOMAIN}::{NAME}"
# How TensorRT names the dtypes of the kernel: in a DataType, and in a list of supported combinations.
DATA_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
COMBINATION_TYPES = ("FP32", "FP16", "BF16")


class Compiler(Protocol):
    """As :func:`nextscale.runtime.backends.nvrtc.compile_ptx`."""

    def __call__(self, source: str, name: str, arch: str, options: Sequence[str]) -> bytes:
        """PTX of a source."""


def register(tensorrt: ModuleType, compile_ptx: Compiler) -> None:
    """Make the plugin known to ``tensorrt``, once: from then on its parser takes it for nodes that carry its name.

    ``tensorrt`` is the imported module. The kernel is compiled when an engine with it is built, for any GPU from
    :data:`nextscale.plugins.kernel.ARCHITECTURE` on.
    """
    plugin = import_module(f"{tensorrt.__name__}.plugin")
    if hasattr(plugin.op, DOMAIN) and hasattr(getattr(plugin.op, DOMAIN), NAME):
        return
    for decorate, function in _definition(plugin, compile_ptx):
        decorate(PLUGIN_ID)(function)


def combinations() -> list[str]:
    """The dtypes of the inputs and the result that the kernel has, as TensorRT reads them."""
    part = "|".join(COMBINATION_TYPES)  # kept and cache alike
    return [f"{part}, INT32, {part}, {full}, FP32, FP32, {full}" for full in COMBINATION_TYPES]


def _definition(plugin: Any, compile_ptx: Compiler) -> list[tuple[Any, Callable[..., Any]]]:
    """The decorators of ``tensorrt.plugin``, and the function that each is to get."""

    @cache
    def ptx_of(part: str, full: str) -> bytes:
        return compile_ptx(kernel.source(), kernel.FILE, kernel.ARCHITECTURE, kernel.options(part, full))

    # The parameters' names and order are TensorRT's: the inputs, then what the kind of function gets besides.
    def describe(kept: Any, index: Any, cache: Any, residual: Any, row_matrix: Any, column_matrix: Any) -> Any:
        return residual.like()

    def combine(
        kept: Any, index: Any, cache: Any, residual: Any, row_matrix: Any, column_matrix: Any, outputs: Any
    ) -> Any:
        return [plugin.AutoTuneCombination(types, "LINEAR") for types in combinations()]

    def implement(
        kept: Any, index: Any, cache: Any, residual: Any, row_matrix: Any, column_matrix: Any, outputs: Any, tactic: int
    ) -> Any:
        inputs = (kept, index, cache, residual, row_matrix, column_matrix)
        shapes = {name: tuple(desc.shape_expr) for name, desc in zip(INPUTS, inputs, strict=True)}
        ptx = ptx_of(_dtype(kept), _dtype(residual))
        return kernel.KERNEL, ptx, _launch(plugin, shapes), _extra_arguments(plugin, shapes)

    tensor, result = plugin.TensorDesc, tuple[plugin.TensorDesc]
    inputs = dict.fromkeys(INPUTS, tensor)
    made = tuple[str, bytes, plugin.KernelLaunchParams, plugin.SymExprs]
    describe.__annotations__ = {**inputs, "return": tensor}
    combine.__annotations__ = {**inputs, "outputs": result, "return": list[plugin.AutoTuneCombination]}
    implement.__annotations__ = {**inputs, "outputs": result, "tactic": int, "return": made}
    return [(plugin.register, describe), (plugin.autotune, combine), (plugin.aot_impl, implement)]


def _dtype(desc: Any) -> str:
    try:
        return DATA_TYPES[desc.dtype.name]
    except KeyError:
        raise ScatterRestoreError(f"the plugin {PLUGIN_ID} takes {', '.join(DATA_TYPES)}, not {desc.dtype}") from None


def _launch(plugin: Any, shapes: kernel.Shapes) -> Any:
    launch = plugin.KernelLaunchParams()
    launch.grid_x = kernel.grid_length(shapes)
    launch.block_x, launch.block_y = kernel.LANES, kernel.TOKENS
    return launch


def _extra_arguments(plugin: Any, shapes: kernel.Shapes) -> Any:
    """The scalars: TensorRT passes inputs, then these, then outputs."""
    lengths = kernel.scalars(shapes)
    arguments = plugin.SymIntExprs(len(lengths))
    for place, length in enumerate(lengths):
        arguments[place] = plugin.SymInt32(length)
    return arguments
