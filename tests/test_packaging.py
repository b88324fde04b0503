"""What the wheel holds, and that each extra brings what it promises to a fresh environment."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from nextscale.runtime import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
ROOTS = ("plan", "runtime", "plugins", "export", "compare", "cli")

# What each extra promises: the modules that import once it is installed. "" is the base.
EXTRAS = {
    "": ["numpy", "safetensors.numpy", "PIL.Image", "typer", "nextscale.plan", "nextscale.runtime"],
    "cpu": ["onnxruntime", "blake3", "nextscale.runtime", "nextscale.runtime.backends.packed.build"],
    "cuda": ["onnxruntime", "cuda.core"],
    "rtx": ["tensorrt_rtx", "onnx", "filelock", "cuda.core", "cuda.bindings.nvrtc"],
    "debug": ["polygraphy"],
    "text": ["tokenizers", "nextscale.runtime.text"],
    "text-export": ["transformers", "sentencepiece", "tokenizers", "torch"],
    "export": ["torch", "onnx", "onnxscript", "huggingface_hub", "onnx_ir", "filelock", "nextscale.export"],
    "compare": ["torch", "jinja2", "nextscale.compare"],
    "dev": ["pytest", "hypothesis", "jsonschema", "hatchling"],
}
# Their wheels bring their libraries from a place of their own, or compile against a CUDA toolkit.
GPU_EXTRAS = {
    "tensorrt": ["tensorrt", "onnx"],
    "pycuda": ["pycuda"],
    "gpu": ["tensorrt", "onnxruntime", "polygraphy", "nvtx"],
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(REPOSITORY)).build(directory=str(folder), versions=["standard"])
    return Path(path)


def test_the_wheel_holds_the_six_packages_and_nothing_else(wheel: Path) -> None:
    expected = {
        path.relative_to(REPOSITORY / root).as_posix()
        for root in ROOTS
        for path in (REPOSITORY / root / "nextscale").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == expected
    assert {f"nextscale/{root}/py.typed" for root in ROOTS} <= packaged
    assert "nextscale/__init__.py" not in packaged


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 2**20, "checkpoints and pictures belong to the repository, not to the wheel"


def test_the_wheel_s_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"nextscale-{__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        licences = {name for name in archive.namelist() if name.startswith(f"{info}/licenses/")}
    assert metadata["Version"] == __version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert licences == {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"}
    assert "nextscale = nextscale.cli.main:app" in scripts
    assert set(metadata.get_all("Provides-Extra", [])) == {*EXTRAS, *GPU_EXTRAS} - {""}


def imports_in_a_fresh_environment(wheel: Path, extra: str, modules: list[str], folder: Path) -> None:
    run = {"cwd": folder, "check": True, "capture_output": True, "text": True}
    python = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], **run)
    target = f"{wheel}[{extra}]" if extra else str(wheel)
    constraints = REPOSITORY / "constraints" / "ci.txt"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, target], **run)
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    subprocess.run([python, "-I", "-c", code, *modules], **run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_it_promises(wheel: Path, extra: str, tmp_path: Path) -> None:
    imports_in_a_fresh_environment(wheel, extra, EXTRAS[extra], tmp_path)


@pytest.mark.gpu
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("extra", GPU_EXTRAS)
def test_a_gpu_extra_brings_what_it_promises(wheel: Path, extra: str, tmp_path: Path) -> None:
    imports_in_a_fresh_environment(wheel, extra, GPU_EXTRAS[extra], tmp_path)
