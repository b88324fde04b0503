"""Every function of cuda-core, cuda.bindings and TensorRT that the runtime calls: there, and taking what it is given.

Nothing of it can run without a GPU, so the installed packages' own signatures are the witness.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda.core as core
import numpy as np
import pytest
import tensorrt_rtx as trt
from cuda.bindings import driver

import nextscale.runtime.backends.cuda as ours

# (function, positional arguments, names of keyword arguments), as cuda.py has them; methods count `self`.
CALLS: list[tuple[Callable[..., Any], int, tuple[str, ...]]] = [
    (driver.cuInit, 1, ()),
    (driver.cuDeviceGet, 1, ()),
    (driver.cuDevicePrimaryCtxRetain, 1, ()),
    (driver.cuDriverGetVersion, 0, ()),
    (driver.cuCtxGetCurrent, 0, ()),
    (driver.cuCtxSetCurrent, 1, ()),
    (driver.cuMemGetInfo, 0, ()),
    (driver.cuMemAlloc, 1, ()),
    (driver.cuMemFree, 1, ()),
    (driver.cuMemHostAlloc, 2, ()),
    (driver.cuMemFreeHost, 1, ()),
    (driver.cuMemcpyHtoDAsync, 4, ()),
    (driver.cuMemcpyDtoHAsync, 4, ()),
    (driver.cuMemcpyDtoDAsync, 4, ()),
    (driver.cuMemsetD8Async, 4, ()),
    (driver.cuPointerGetAttribute, 2, ()),
    (driver.cuStreamIsCapturing, 1, ()),
    (driver.cuStreamEndCapture, 1, ()),
    (driver.cuThreadExchangeStreamCaptureMode, 1, ()),
    (core.Device.set_current, 1, ()),
    (core.Device.create_stream, 1, ()),
    (core.Stream.sync, 1, ()),
    (core.Stream.record, 1, ("options",)),
    (core.Stream.create_graph_builder, 1, ()),
    (core.Event.sync, 1, ()),
    (core.graph.GraphBuilder.begin_building, 2, ()),
    (core.graph.GraphBuilder.end_building, 1, ()),
    (core.graph.GraphBuilder.complete, 1, ()),
    (core.graph.GraphBuilder.close, 1, ()),
    (core.graph.Graph.launch, 2, ()),
    (core.graph.Graph.upload, 2, ()),
    (core.launch, 8, ()),
    (core.ObjectCode.from_ptx, 1, ("name",)),
    (core.ObjectCode.get_kernel, 2, ()),
    (core.Buffer.from_handle, 2, ("owner",)),
    (core.utils.StridedMemoryView.from_any_interface, 2, ()),
    (core.utils.StridedMemoryView.from_buffer, 2, ("dtype",)),
]
NAMES = {
    driver: {
        "CU_MEMHOSTALLOC_PORTABLE",
        "CUresult",
        "CUmemorytype",
        "CUpointer_attribute",
        "CUstreamCaptureMode",
        "CUstreamCaptureStatus",
    },
    core: {"Device", "LaunchConfig", "ObjectCode", "Buffer", "launch", "utils", "__version__"},
}


@pytest.mark.parametrize(("function", "count", "keywords"), CALLS, ids=[f.__name__ for f, _, _ in CALLS])
def test_the_installed_package_takes_what_it_is_given(
    function: Callable[..., Any], count: int, keywords: tuple[str, ...]
) -> None:
    inspect.signature(function).bind(*range(count), **dict.fromkeys(keywords))


def test_every_function_of_the_module_is_in_the_table() -> None:
    """What the source names of the two packages, against what the table and the lists above know."""
    source = ast.parse(Path(ours.__file__).read_text(encoding="utf-8"))
    calls = {"_driver": driver, "_core": core}
    known = {function.__name__ for function, _, _ in CALLS}
    for node in ast.walk(source):
        if not isinstance(node, ast.Attribute):
            continue
        value = node.value.func if isinstance(node.value, ast.Call) else node.value
        name = value.id if isinstance(value, ast.Name) else ""
        module = {"driver": driver, "core": core}.get(name) or calls.get(name)
        if module is not None:
            assert hasattr(module, node.attr), f"line {node.lineno}: {node.attr}"
            assert node.attr in known | NAMES[module], f"line {node.lineno}: {node.attr} is in no table of this test"


def test_one_module_calls_cuda() -> None:
    """By import statements and by names given to ``import_module``; the compiler beside it needs no GPU."""
    found = set()
    for path in Path(ours.__file__).parent.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []
            if any(re.fullmatch(r"cuda\.(core|bindings)(\.\w+)*", name) for name in names):
                found.add(path.name)
    assert found == {"cuda.py", "nvrtc.py"}


def test_enums_and_attributes() -> None:
    about = driver.CUpointer_attribute
    for name in ("MEMORY_TYPE", "IS_MANAGED", "CONTEXT", "DEVICE_ORDINAL"):
        assert f"CU_POINTER_ATTRIBUTE_{name}" in about.__members__
        assert f"about.CU_POINTER_ATTRIBUTE_{name}" in Path(ours.__file__).read_text(encoding="utf-8")
    assert "CU_MEMORYTYPE_DEVICE" in driver.CUmemorytype.__members__
    assert "CU_STREAM_CAPTURE_MODE_RELAXED" in driver.CUstreamCaptureMode.__members__
    assert "CU_STREAM_CAPTURE_STATUS_NONE" in driver.CUstreamCaptureStatus.__members__
    assert type(driver.CUresult.CUDA_SUCCESS).__name__ == "CUresult"
    assert int(driver.CUresult.CUDA_SUCCESS) == 0
    for attribute in ("name", "arch"):
        assert hasattr(core.Device, attribute)
    for attribute in ("ptr", "shape", "strides", "dtype", "readonly", "__dlpack__"):
        assert hasattr(core.utils.StridedMemoryView, attribute)
    assert core.EventOptions(timing_enabled=True).timing_enabled
    assert hasattr(core.Event, "__sub__")


def test_a_launch_is_configured_as_we_do() -> None:
    config = core.LaunchConfig(grid=(3, 2, 1), block=(256, 1, 1))
    assert (tuple(config.grid), tuple(config.block)) == ((3, 2, 1), (256, 1, 1))


def test_a_view_of_an_array_tells_what_we_read() -> None:
    """cuda-core's view of an array of the host, which needs no GPU."""
    view = core.utils.StridedMemoryView.from_any_interface(np.zeros((2, 3), np.float32), -1)
    assert (view.shape, view.dtype, view.readonly) == ((2, 3), np.dtype("float32"), False)


# Methods of TensorRT and words of their documented parameters: overloads of pybind11 have no signature.
TENSORRT = [
    (trt.Runtime, "deserialize_cuda_engine", "serialized_engine"),
    (trt.ICudaEngine, "create_execution_context", "strategy: tensorrt_rtx_bindings.tensorrt_rtx.ExecutionContextAlloc"),
    (trt.ICudaEngine, "create_execution_context", "runtime_config: tensorrt_rtx_bindings.tensorrt_rtx.IRuntimeConfig"),
    (trt.ICudaEngine, "create_runtime_config", "-> tensorrt_rtx_bindings.tensorrt_rtx.IRuntimeConfig"),
    (trt.ICudaEngine, "get_tensor_name", "index"),
    (trt.ICudaEngine, "get_tensor_mode", "name: str"),
    (trt.ICudaEngine, "get_tensor_dtype", "name: str"),
    (trt.ICudaEngine, "get_tensor_shape", "name: str"),
    (trt.ICudaEngine, "get_device_memory_size_for_profile_v2", "profile_index"),
    (trt.IExecutionContext, "set_optimization_profile_async", "stream_handle: typing.SupportsInt) -> bool"),
    (trt.IExecutionContext, "set_input_shape", "name: str, shape: tuple) -> bool"),
    (trt.IExecutionContext, "set_device_memory", "memory: typing.SupportsInt, size: typing.SupportsInt) -> None"),
    (trt.IExecutionContext, "set_tensor_address", "name: str, memory: typing.SupportsInt) -> bool"),
    (trt.IExecutionContext, "infer_shapes", "-> list[str]"),
    (trt.IExecutionContext, "is_stream_capturable", "stream: typing.SupportsInt) -> bool"),
    (trt.IExecutionContext, "execute_async_v3", "stream_handle: typing.SupportsInt) -> bool"),
    (trt.IRuntimeConfig, "set_execution_context_allocation_strategy", "strategy"),
    (trt.IRuntimeConfig, "get_execution_context_allocation_strategy", "ExecutionContextAllocationStrategy"),
    (trt.IRuntimeConfig, "create_runtime_cache", "-> nvinfer1::IRuntimeCache"),
    (trt.IRuntimeConfig, "set_runtime_cache", "-> bool"),
    (trt.IRuntimeCache, "serialize", "IHostMemory"),
    (trt.IRuntimeCache, "deserialize", "-> bool"),
]


@pytest.mark.parametrize(("owner", "name", "words"), TENSORRT, ids=[f"{o.__name__}.{n}" for o, n, _ in TENSORRT])
def test_tensorrt_has_what_the_executor_calls(owner: type, name: str, words: str) -> None:
    assert words in " ".join((getattr(owner, name).__doc__ or "").split())


def test_tensorrt_has_the_members_that_the_executor_names() -> None:
    assert "USER_MANAGED" in trt.ExecutionContextAllocationStrategy.__members__
    assert "DISABLED" in trt.CudaGraphStrategy.__members__
    assert "EAGER" in trt.DynamicShapesKernelSpecializationStrategy.__members__
    assert "INPUT" in trt.TensorIOMode.__members__
    assert {"FLOAT", "HALF", "BF16", "INT64", "INT32", "INT8", "UINT8"} <= {*trt.DataType.__members__}
    for name in ("num_io_tensors", "num_optimization_profiles"):
        assert hasattr(trt.ICudaEngine, name)
    for name in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"):
        assert getattr(trt.IRuntimeConfig, name).fset is not None
