"""The layout holds: six roots of one namespace package, the order of their imports, and what stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOTS = ("plan", "runtime", "plugins", "export", "compare", "cli")
FOLDERS = (*ROOTS, "tests", "engines", "benchmarks", "examples", "docs")

# What each root may import of the others.
MAY_IMPORT = {
    "plan": set(),
    "plugins": set(),
    "runtime": {"plan", "plugins"},
    "export": {"plan", "plugins", "runtime"},
    "compare": {"plan", "plugins", "runtime", "export"},
    "cli": {"plan", "plugins", "runtime", "export", "compare"},
}
# What no file of a root may import at all, not even inside a function.
NEVER = {
    "plan": {"torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "PIL", "typer", "rich"},
    "runtime": {"torch", "onnxscript", "huggingface_hub", "transformers", "typer", "rich"},
}
HEAVY = {
    *("torch", "onnx", "onnxscript", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", "huggingface_hub", "jinja2"),
    *("tokenizers", "transformers"),
}


def sources(root: str) -> list[Path]:
    return sorted((REPOSITORY / root / "nextscale").rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that a file imports, in functions too, and by ``import_module`` of a literal."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module="nextscale", names=names):
                yield from (f"nextscale.{alias.name}" for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.ImportFrom(level=level) if level > 0:
                yield "." * level
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[first, *_]):
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield first.value


def imported(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text(encoding="utf-8"), str(path))))


def test_imports_are_found_wherever_they_stand() -> None:
    text = """
import torch.nn as nn
from nextscale import plan
def late():
    from nextscale.export.models import var
    import importlib
    importlib.import_module("onnx")
from . import sibling
"""
    found = set(imports(ast.parse(text)))
    assert found == {"torch.nn", "nextscale.plan", "nextscale.export.models", "importlib", "onnx", "."}


def test_the_namespace_has_no_init() -> None:
    found = [root for root in ROOTS if (REPOSITORY / root / "nextscale" / "__init__.py").exists()]
    assert not found, f"nextscale/__init__.py in {found} would hide the other roots"


@pytest.mark.parametrize("root", ROOTS)
def test_a_root_is_one_typed_package(root: str) -> None:
    namespace = REPOSITORY / root / "nextscale"
    packages = [entry.name for entry in namespace.iterdir() if entry.name != "__pycache__"]
    assert packages == [root]
    assert (namespace / root / "py.typed").is_file()
    for source in sources(root):
        assert (source.parent / "__init__.py").is_file(), f"{source.parent} is a package without __init__.py"


def test_files_are_as_short_as_contributing_says() -> None:
    said = re.search(r"Files of up to (\d+) lines", (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert said
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not [path for path, length in lengths.items() if length > int(said[1])]


def test_every_forward_of_a_model_gives_its_shapes() -> None:
    for source in (REPOSITORY / "export/nextscale/export/models").glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "forward":
                assert "(" in (ast.get_docstring(node) or ""), f"{source.name}, line {node.lineno}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_root_says_what_lives_there(folder: str) -> None:
    assert len((REPOSITORY / folder / "README.md").read_text(encoding="utf-8").split()) > 10


def test_the_metadata_names_every_root() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    build = project["tool"]["hatch"]["build"]
    assert sorted(build["dev-mode-dirs"]) == sorted(ROOTS)
    assert sorted(build["targets"]["wheel"]["packages"]) == sorted(f"{root}/nextscale" for root in ROOTS)
    assert set(ROOTS) <= set(project["tool"]["mypy"]["mypy_path"])


@pytest.mark.parametrize("root", ROOTS)
def test_the_roots_import_in_their_order(root: str) -> None:
    wrong = []
    for source in sources(root):
        for name in imported(source):
            parts = name.split(".")
            if name.startswith("."):
                wrong.append(f"{source}: a relative import")
            elif parts[0] == "nextscale" and parts[1] not in MAY_IMPORT[root] | {root}:
                wrong.append(f"{source}: {root} may not import {name}")
            elif parts[0] in NEVER.get(root, set()):
                wrong.append(f"{source}: {root} never imports {name}")
    assert not wrong, "\n".join(wrong)


def library(name: str) -> str:
    """The package that a module belongs to; CUDA's compiler counts by itself, because it needs no driver."""
    return name if name == "cuda.bindings.nvrtc" else name.split(".")[0]


@pytest.mark.parametrize("modules", [{"tensorrt", "tensorrt_rtx"}, {"cuda"}, {"cuda.bindings.nvrtc"}, {"onnxruntime"}])
def test_the_runtime_meets_each_library_in_one_module(modules: set[str]) -> None:
    importers = [path for path in sources("runtime") if {library(name) for name in imported(path)} & modules]
    assert len(importers) <= 1, f"{modules} are imported by {[path.name for path in importers]}"


def loaded_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after ``code``."""
    report = f"import sys\n{code}\nsys.stderr.write(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stderr.split())


@pytest.mark.parametrize("package", ["plan", "runtime"])
def test_importing_a_light_package_loads_nothing_heavy(package: str) -> None:
    loaded = loaded_after(f"import nextscale.{package}")
    assert "nextscale" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["doctor"], ["recipes"], ["plan", "var-d16"]], ids=" ".join)
def test_what_needs_only_the_base_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_after(f"from nextscale.cli.main import app\nassert app({arguments}, standalone_mode=False) == 0")
    assert "typer" in loaded
    assert not loaded & HEAVY
