"""The plugin's definition against TensorRT's real Python bindings, without TensorRT and without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.host_kernel import compiler
from support.one_node import SHAPES

from nextscale.plugins import kernel
from nextscale.plugins.signature import INPUTS
from nextscale.plugins.tensorrt_plugin import DATA_TYPES, combinations

TESTS = Path(__file__).resolve().parent.parent
NEEDED = {"tensorrt_bindings": "tensorrt-cu13-bindings==11.*", "tensorrt_rtx_libs": "tensorrt-rtx-cu13-libs"}
# The names that the bindings look for, and whose libraries they get.
STANDING_IN = {"libnvinfer.so.11": "libtensorrt_rtx.so.1", "libnvonnxparser.so.11": "libtensorrt_onnxparser_rtx.so.1"}
# The bindings want NVIDIA's own plugins to be there; none of them is used.
NO_PLUGINS = 'extern "C" bool initLibNvInferPlugins(void*, const char*) { return true; }'


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``support/plugin_definition.py`` says, run with TensorRT-RTX's libraries under TensorRT's names."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    assert not missing, f"checking the plugin against TensorRT's bindings needs: pip install --no-deps {missing}"
    spec = find_spec("tensorrt_rtx_libs")
    assert spec is not None
    assert spec.origin is not None
    folder = tmp_path_factory.mktemp("libraries")
    for name, library in STANDING_IN.items():
        (folder / name).symlink_to(Path(spec.origin).parent / library)
    (folder / "none.cpp").write_text(NO_PLUGINS)
    build = [compiler(), "-shared", "-fPIC", "none.cpp", "-o", "libnvinfer_plugin.so.11"]
    subprocess.run(build, cwd=folder, check=True)
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(TESTS / "support" / "plugin_definition.py")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


linux = pytest.mark.skipif(sys.platform != "linux", reason="libraries are put in the bindings' way by LD_LIBRARY_PATH")


@linux
def test_the_bindings_accept_the_definition(report: dict[str, Any]) -> None:
    """Their signature checks ran: names, order and annotations of three functions."""
    assert report["version"].startswith("11.")
    assert report["inputs"] == list(INPUTS)
    assert {made["kind"] for made in report["made"].values()} == {"_TemplateAOTPlugin"}, "PTX, no Python at run time"


@linux
def test_every_pair_of_dtypes_has_its_kernel(report: dict[str, Any]) -> None:
    assert set(report["made"]) == {f"{part}-{full}" for part, full in product(DATA_TYPES, DATA_TYPES)}
    for pair, made in report["made"].items():
        part, full = pair.split("-")
        assert made["output"] == full
        assert [part, "INT32", part, full, "FLOAT", "FLOAT", full] in made["supported"]
        assert made["kernel"] == kernel.KERNEL
        assert made["ptx_is_the_compiler_s"]


@linux
def test_symbolic_lengths_give_the_geometry_of_plain_numbers(report: dict[str, Any]) -> None:
    grid, block, scalars = kernel.geometry(SHAPES)
    for made in report["made"].values():
        assert made["output_shape"] == list(kernel.output_shape(SHAPES))
        assert made["extents"] == [*grid, *block]
        assert made["scalars"] == list(scalars)
        assert made["extra_arguments"] == len(scalars)


@linux
def test_the_parser_finds_the_plugin_by_the_node_s_name_and_namespace(report: dict[str, Any]) -> None:
    """Without the plugin it takes the function; with it, TensorRT-RTX's parser says that it has no use for its kind."""
    assert report["without"]["accepted"]
    assert report["without"]["layers"] > 10
    assert not report["with"]["accepted"]
    assert any("plugin" in error.lower() for error in report["with"]["errors"])


def test_combinations_are_the_kernel_s() -> None:
    assert combinations() == [
        "FP32|FP16|BF16, INT32, FP32|FP16|BF16, FP32, FP32, FP32, FP32",
        "FP32|FP16|BF16, INT32, FP32|FP16|BF16, FP16, FP32, FP32, FP16",
        "FP32|FP16|BF16, INT32, FP32|FP16|BF16, BF16, FP32, FP32, BF16",
    ]
    assert set(DATA_TYPES.values()) == set(kernel.DTYPES)
