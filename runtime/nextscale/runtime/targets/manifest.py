"""The manifest of a target folder, ``target.json``: what was built, from which graphs, by what, and how.

As strict as a bundle's: unknown keys are refused, and no entry can name a file outside the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from nextscale.runtime import strict
from nextscale.runtime.errors import ManifestError
from nextscale.runtime.manifest import PRECISIONS, check_file_name

SCHEMA_VERSION = 1
FILE_NAME = "target.json"
FLAVORS = ("tensorrt", "tensorrt-rtx")
WEIGHTS = ("inputs", "embedded")
RESTORES = ("plugin", "function")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TARGET = re.compile(r"sm[1-9][0-9]{1,2}")


class NewerManifest(ManifestError):
    """A manifest of a version that a newer nextscale writes."""


@dataclass(frozen=True)
class Plugin:
    """How a plugin is found in TensorRT's registry."""

    name: str
    namespace: str
    version: str


@dataclass(frozen=True)
class Settings:
    """Everything but the graphs that makes an engine what it is; which of it concerns which engine, says ``stale``.

    ``target`` is a compute capability, ``sm86``. An engine has one profile per entry of ``batch_sizes``, in that order.
    ``weights`` is ``inputs`` (fed from one arena) or ``embedded`` (a copy in every engine that reads them), ``restore``
    is ``plugin`` or ``function``. ``plugin`` and ``kernel_sha256`` stand only with ``restore = plugin``,
    ``weights_sha256`` only with embedded weights. ``options`` are those of TensorRT's builder.
    """

    flavor: str
    library_version: str
    parser_version: str | None
    target: str
    precision: str
    batch_sizes: tuple[int, ...]
    weights: str
    restore: str
    plugin: Plugin | None
    kernel_sha256: str | None
    weights_sha256: str | None
    options: Mapping[str, str]


@dataclass(frozen=True)
class Engine:
    """The engine of one graph. ``graph_sha256`` is of the ONNX file, ``sha256`` and ``size`` (bytes) of the engine.

    ``seconds`` is what its build took; ``layers`` and ``plugin_layers`` were counted after the parse. ``scratch`` maps
    a batch size to the bytes of device memory that a context needs, None where only the card can tell.
    """

    graph: str
    file: str
    graph_sha256: str
    sha256: str
    size: int
    seconds: float
    layers: int
    plugin_layers: int
    scratch: Mapping[str, int] | None


@dataclass(frozen=True)
class Target(Settings):
    """A target folder. ``bundle`` is the name of the bundle that it was built from, ``versions`` what built it."""

    bundle: str
    engines: tuple[Engine, ...]
    versions: Mapping[str, str]
    schema_version: int = SCHEMA_VERSION

    @property
    def settings(self) -> Settings:
        """Only what an engine depends on."""
        return Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})

    def engine(self, graph: str) -> Engine:
        """The engine of that graph; raises :class:`ManifestError` where there is none."""
        for engine in self.engines:
            if engine.graph == graph:
                return engine
        raise ManifestError(f"the target has no engine of graph {graph!r}; it has {[e.graph for e in self.engines]}")


def make_target(settings: Settings, bundle: str, engines: tuple[Engine, ...], versions: Mapping[str, str]) -> Target:
    """A target of those settings."""
    parts = {field.name: getattr(settings, field.name) for field in fields(Settings)}
    return Target(**parts, bundle=bundle, engines=engines, versions=versions)


def dumps(target: Target) -> str:
    """The text of ``target.json``, ``schema_version`` first."""
    check(target)
    data = strict.write(target)
    return json.dumps({"schema_version": data.pop("schema_version"), **data}, indent=1) + "\n"


def loads(text: str | bytes) -> Target:
    """A checked manifest; raises :class:`ManifestError` with the place of what is wrong."""
    data = strict.parse(text)
    if not isinstance(data, dict):
        raise ManifestError("a target's manifest is a JSON object; this is not one")
    _check_version(data.get("schema_version"))
    target = strict.read(Target, data)
    check(target)
    return target


def check(target: Target) -> None:
    """Refuse a manifest that contradicts itself."""
    _one_of("flavor", target.flavor, FLAVORS)
    _one_of("precision", target.precision, tuple(PRECISIONS))
    _one_of("weights", target.weights, WEIGHTS)
    _one_of("restore", target.restore, RESTORES)
    check_target_name(target.target)
    sizes = target.batch_sizes
    if not sizes or list(sizes) != sorted(set(sizes)) or not all(0 < size < 2**16 for size in sizes):
        raise ManifestError(f"batch_sizes: {list(sizes)} are not distinct numbers from 1 up, ascending")
    for name, present in (("plugin", target.restore == "plugin"), ("kernel_sha256", target.restore == "plugin")):
        if (getattr(target, name) is not None) != present:
            raise ManifestError(f"{name}: stands exactly where restore is 'plugin'")
    if (target.weights_sha256 is not None) != (target.weights == "embedded"):
        raise ManifestError("weights_sha256: stands exactly where weights are 'embedded'")
    for name in ("kernel_sha256", "weights_sha256"):
        _check_sha256(name, getattr(target, name) or "0" * 64)
    _check_engines(target)


def check_target_name(name: str) -> None:
    """Refuse what is not a compute capability such as ``sm86``."""
    if not _TARGET.fullmatch(name):
        raise ManifestError(f"target: {name!r} is not a compute capability such as sm86")


def _check_engines(target: Target) -> None:
    for kind in ("graph", "file"):
        names = [getattr(engine, kind) for engine in target.engines]
        if len(set(names)) != len(names):
            raise ManifestError(f"engines: a {kind} stands twice in {names}")
    for i, engine in enumerate(target.engines):
        path = f"engines[{i}]"
        check_file_name(engine.file, f"{path}.file")
        if engine.file == FILE_NAME:
            raise ManifestError(f"{path}.file: a manifest cannot list itself")
        _check_sha256(f"{path}.graph_sha256", engine.graph_sha256)
        _check_sha256(f"{path}.sha256", engine.sha256)
        if min(engine.size, engine.seconds, engine.layers, engine.plugin_layers) < 0:
            raise ManifestError(f"{path}: size, seconds and counts of layers are not negative")
        if engine.scratch is not None and set(engine.scratch) != {str(size) for size in target.batch_sizes}:
            raise ManifestError(f"{path}.scratch: has an entry for each of the batch sizes {list(target.batch_sizes)}")


def _check_sha256(path: str, text: str) -> None:
    if not _SHA256.fullmatch(text):
        raise ManifestError(f"{path}: a sha256 is 64 lower-case hex digits")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ManifestError(f"{name}: {value!r} is none of {', '.join(known)}")


def _check_version(version: Any) -> None:
    if type(version) is not int:
        raise ManifestError(f"schema_version: expected the number {SCHEMA_VERSION}, found {version!r}")
    said = f"this target has manifest version {version}, this nextscale reads {SCHEMA_VERSION}"
    if version > SCHEMA_VERSION:
        raise NewerManifest(f"{said}: install a newer nextscale")
    if version < SCHEMA_VERSION:
        raise ManifestError(said)
