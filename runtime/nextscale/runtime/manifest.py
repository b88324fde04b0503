"""The manifest of a bundle: what its files are, and every tensor that a service must hand from graph to graph.

``manifest.json`` is a public contract (``docs/manifest.md``, ``manifest.schema.json``). It is strict in both
directions: unknown keys are refused, and a file of another schema version gets one sentence that says what to do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from nextscale.plan import codec
from nextscale.plan.conditioning import TEXT
from nextscale.plan.types import Plan
from nextscale.runtime import strict
from nextscale.runtime.errors import ManifestError
from nextscale.runtime.plans import check_classes, check_plan, read_plan

SCHEMA_VERSION = 3
FILE_NAME = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "float32"}  # of tapes and caches
ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int8": 1, "uint8": 1, "int64": 8}
IMAGES, ROWS = "images", "rows"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Tensor:
    """One input or output of a graph, and where its data lives.

    ``shape`` holds numbers and the symbols ``images`` (pictures of the pass), ``rows`` (guidance rows times pictures)
    and ``text`` (tokens of the longest text of the pass, or more). The tensor is the ``shape[0]`` rows of ``buffer``
    from row ``offset`` on, contiguous; a row has ``prod(shape[1:])`` items. ``access``: ``read`` (an input), ``append``
    (new rows behind those that earlier graphs wrote) or ``replace`` (what the buffer held is over). ``source`` is None
    for data that other graphs wrote, else what the caller puts there before the graph runs: ``ids`` and ``length`` of a
    prompt; ``labels``, or ``text``, ``text_length``, ``negative`` and ``negative_length``; ``uniforms.0``,
    ``uniforms.1`` and ``uniforms.2`` (noise of that stream), ``guidance``, ``top_p``, ``temperature``, ``tokens``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    buffer: str
    offset: int
    access: str
    source: str | None = None

    def concrete(self, images: int, guidance_rows: int) -> tuple[int, ...]:
        """The shape for so many pictures, of a tensor whose text has a number."""
        symbols = {IMAGES: images, ROWS: images * guidance_rows}
        return tuple(symbols[d] if isinstance(d, str) else d for d in self.shape)

    def span(self, images: int, guidance_rows: int) -> tuple[int, int]:
        """First byte in the buffer and number of bytes, for so many pictures."""
        shape = self.concrete(images, guidance_rows)
        size = ITEM_SIZES[self.dtype]
        return self.offset * prod(shape[1:]) * size, prod(shape) * size


@dataclass(frozen=True)
class Graph:
    """One ONNX file: ``text``, ``begin``, ``step_00`` ... or ``decode``. ``step`` is its plan's order, else None."""

    name: str
    file: str
    step: int | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class File:
    """Digest and length in bytes of a file beside the manifest."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Weight:
    """One initializer of the graphs. ``rule`` is None for a checkpoint tensor as it is, else how it is derived.

    ``keys`` are the checkpoint keys that it comes from, with their weight set: ``var/blocks.0.attn.q_bias``.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    rule: str | None
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """The named, versioned choice of model, schedule and methods that the plan came from."""

    name: str
    version: int


@dataclass(frozen=True)
class SourceFile:
    """A checkpoint file that went into the bundle: its own name without folders, and its digest."""

    weight_set: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """Where the weights come from. ``repo`` and ``revision`` name a model hub repository, None for local files."""

    files: tuple[SourceFile, ...]
    repo: str | None = None
    revision: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Verified:
    """One check that the exporter made: of which graph, how, the largest error and the bound that it met.

    Both are in units of max(1, standard deviation of the eager model's tensor).
    """

    graph: str
    how: str
    max_error: float | None
    tolerance: float | None


@dataclass(frozen=True)
class Manifest:
    """Everything about a bundle that is not weights or graphs. ``versions`` are those of the exporting machine.

    What a call uses where it names no value (``guidance_scale``, ``top_p``, ``temperature``) stands in
    ``plan.defaults``, and ``top_k``, which is fixed in the graphs, in the sampling of the plan's steps.
    """

    name: str
    recipe: Recipe
    precision: str
    plan: Plan
    graphs: tuple[Graph, ...]
    files: Mapping[str, File]
    weights: Mapping[str, Weight]
    versions: Mapping[str, str]
    source: Source
    verified: tuple[Verified, ...]
    classes: tuple[str, ...] | None = None
    tokenizer: str | None = None
    schema_version: int = SCHEMA_VERSION

    def graph(self, name: str) -> Graph:
        """The graph of that name; raises :class:`ManifestError` where there is none."""
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise ManifestError(f"the bundle has no graph {name!r}; it has {[g.name for g in self.graphs]}")

    @property
    def steps(self) -> tuple[Graph, ...]:
        """The step graphs, in order."""
        return tuple(sorted((g for g in self.graphs if g.step is not None), key=lambda g: g.step or 0))

    @property
    def text_tokens(self) -> int:
        """The most that the symbol ``text`` may stand for; 0 where no tensor has it."""
        text = self.plan.models[0][1].text
        return text.tokens if text is not None and text.use == "cross" else 0

    @property
    def guidance_rows(self) -> int:
        """Rows per picture: of every graph of the bundle, as the ``rows`` symbol is one number."""
        return self.plan.steps[0].rows


def digest(text: str | bytes) -> str:
    """The bundle's identity: sha256 of the manifest file's bytes, in hex (it holds the digests of all other files)."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def to_json(manifest: Manifest) -> dict[str, Any]:
    """Plain data for JSON, ``schema_version`` first."""
    data = strict.write(manifest, {Plan: codec.to_json})
    return {"schema_version": data.pop("schema_version"), **data}


def dumps(manifest: Manifest) -> str:
    """The text of ``manifest.json``: what fits on a line stands on one, so a tensor does."""
    check(manifest)
    return _lines(to_json(manifest), 0) + "\n"


def from_json(data: Any) -> Manifest:
    """A checked manifest from plain data; raises :class:`ManifestError` with the path of what is wrong."""
    if not isinstance(data, dict):
        raise ManifestError("a manifest is a JSON object; this is not one")
    _check_version(data.get("schema_version"))
    manifest = strict.read(Manifest, data, hooks={Plan: read_plan})
    check(manifest)
    return manifest


def loads(text: str | bytes) -> Manifest:
    """A checked manifest from the text of ``manifest.json``."""
    return from_json(strict.parse(text))


def check_file_name(name: str, path: str) -> None:
    """Refuse any name that is not one plain file beside the manifest."""
    if not _PLAIN_NAME.fullmatch(name):
        raise ManifestError(
            f"{path}: {name!r} is not a plain file name; a bundle names only files in its own folder "
            "(letters, digits, '.', '_' and '-')"
        )


def check(manifest: Manifest) -> None:
    """Refuse a manifest that contradicts itself; graphs against plan is :func:`nextscale.runtime.signatures.check`."""
    check_plan(manifest.plan)
    if manifest.precision not in PRECISIONS:
        raise ManifestError(f"precision: {manifest.precision!r} is none of {', '.join(PRECISIONS)}")
    for name, file in manifest.files.items():
        check_file_name(name, f"files.{name}")
        if name == FILE_NAME:
            raise ManifestError(f"files.{name}: a manifest cannot list itself")
        if not _SHA256.fullmatch(file.sha256) or file.size < 0:
            raise ManifestError(f"files.{name}: sha256 is 64 lower-case hex digits and size is not negative")
    if manifest.tokenizer is not None:
        check_file_name(manifest.tokenizer, "tokenizer")
        _check_listed(manifest.tokenizer, manifest, "tokenizer")
    _check_listed(WEIGHTS_FILE, manifest, "files")  # graphs read it whether or not an entry of `weights` names it
    names = [g.name for g in manifest.graphs]
    if len(set(names)) != len(names):
        raise ManifestError(f"graphs: a name stands twice in {names}")
    for i, graph in enumerate(manifest.graphs):
        check_file_name(graph.file, f"graphs[{i}].file")
        _check_listed(graph.file, manifest, f"graphs[{i}].file")
        for kind, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            for j, tensor in enumerate(tensors):
                _check_tensor(tensor, f"graphs[{i}].{kind}[{j}]")
    for key, weight in manifest.weights.items():
        check_file_name(weight.file, f"weights.{key}.file")
        _check_listed(weight.file, manifest, f"weights.{key}.file")
    check_classes(manifest.plan, manifest.classes, {key: weight.shape for key, weight in manifest.weights.items()})


def _check_tensor(tensor: Tensor, path: str) -> None:
    if tensor.dtype not in ITEM_SIZES:
        raise ManifestError(f"{path}.dtype: {tensor.dtype!r} is none of {', '.join(ITEM_SIZES)}")
    if tensor.access not in ("read", "append", "replace"):
        raise ManifestError(f"{path}.access: {tensor.access!r} is none of read, append, replace")
    for d in tensor.shape:
        if (isinstance(d, str) and d not in (IMAGES, ROWS, TEXT)) or (isinstance(d, int) and not 0 < d < 2**31):
            raise ManifestError(f"{path}.shape: {d!r} is neither a positive number nor 'images', 'rows' or 'text'")
    if not tensor.shape or not 0 <= tensor.offset < 2**31:
        raise ManifestError(f"{path}: a tensor has at least one axis and an offset that is not negative")


def _check_listed(name: str, manifest: Manifest, path: str) -> None:
    if name not in manifest.files:
        raise ManifestError(f"{path}: {name!r} is not listed under files, so it cannot be checked")


def _check_version(version: Any) -> None:
    if version == SCHEMA_VERSION and type(version) is int:
        return
    if type(version) is not int:
        raise ManifestError(f"schema_version: expected the number {SCHEMA_VERSION}, found {version!r}")
    if version < SCHEMA_VERSION:
        raise ManifestError(
            f"this bundle has manifest version {version}, this nextscale reads {SCHEMA_VERSION}: "
            "export it again from its checkpoint with `nextscale export`"
        )
    raise ManifestError(
        f"this bundle has manifest version {version}, this nextscale reads {SCHEMA_VERSION}: "
        "install a newer nextscale, or export the bundle again with this one"
    )


def _lines(value: Any, indent: int) -> str:
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    if len(text) + indent <= 180 or not isinstance(value, (dict, list)):
        return text
    pad = " " * (indent + 1)
    if isinstance(value, list):
        return "[\n" + ",\n".join(pad + _lines(item, indent + 1) for item in value) + f"\n{' ' * indent}]"
    items = (f"{pad}{json.dumps(key)}: {_lines(item, indent + 1)}" for key, item in value.items())
    return "{\n" + ",\n".join(items) + f"\n{' ' * indent}}}"
