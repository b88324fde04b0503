"""Bundles of published size without their weights: graphs as an export writes them, beside a file that is a hole.

Engines whose weights are inputs are made of the graphs alone, so what they cost can be measured where gigabytes of
drawn weights would not fit. Such a bundle draws no pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from nextscale.export.bundle import listed
from nextscale.export.graphs import GraphBuilder, Traced
from nextscale.export.lazy import Lazy
from nextscale.export.names import weights_of
from nextscale.export.parameters import Parameters
from nextscale.export.weights import ONNX_DTYPES, weight_table
from nextscale.plan.recipes import Recipe, plan_for
from nextscale.runtime.manifest import FILE_NAME, WEIGHTS_FILE, Manifest, Source, SourceFile, dumps
from nextscale.runtime.manifest import Recipe as Named
from nextscale.runtime.signatures import derive_graphs

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # of safetensors


def write_hollow(folder: Path, recipe: Recipe, precision: str, traced: Traced) -> Path:
    """The bundle of a recipe at its published numbers in ``folder``, which is new. ``traced`` shares pieces."""
    folder.mkdir(parents=True)
    plan = plan_for(recipe, recipe.model, recipe.tokenizer, recipe.schedule, recipe.sampling)
    builder = GraphBuilder(plan, precision, traced)
    composers = builder.build(lambda done, total, what: None)
    names: set[str] = set().union(*(composer.weights for composer in composers))
    models = {name: Parameters(m, m, {}, folder) for name, m in (("var", builder.var), ("vae", builder.vae))}
    tensors = weights_of(names, models)  # shapes and dtypes; none is ever read
    references = _write_hole(folder / WEIGHTS_FILE, tensors)
    for composer in composers:
        onnx.save_model(composer.model(references), folder / composer.signature.file)
    manifest = Manifest(
        name=folder.name,
        recipe=Named(recipe.name, recipe.version),
        precision=precision,
        plan=plan,
        graphs=derive_graphs(plan, precision),
        files=listed(folder),
        weights=weight_table(tensors),
        versions={"nextscale": version("nextscale")},
        source=Source((SourceFile("var", "none", "0" * 64),)),
        verified=(),
    )
    (folder / FILE_NAME).write_text(dumps(manifest), encoding="utf-8")
    return folder


def _write_hole(path: Path, tensors: Mapping[str, Lazy]) -> dict[str, onnx.TensorProto]:
    """A safetensors file whose values take no room on the disk, and the external initializers into it."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.nbytes
        kind = NAMES[ONNX_DTYPES[tensor.dtype][0]]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    references = {}
    for name, tensor in tensors.items():
        start, end = header[name]["data_offsets"]
        reference = onnx.TensorProto(
            name=name,
            data_type=ONNX_DTYPES[tensor.dtype][1],
            dims=tensor.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", WEIGHTS_FILE), ("offset", 8 + len(text) + start), ("length", end - start)):
            reference.external_data.add(key=key, value=str(value))
        references[name] = reference
    return references
