"""target.json: strict in both directions, and never naming a file outside its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nextscale.runtime.errors import ManifestError
from nextscale.runtime.targets.manifest import FILE_NAME, dumps, loads

Edit = Callable[[Any], Any]
HASH = "0" * 64


def test_it_reads_back_what_it_wrote(built: Path) -> None:
    text = (built / FILE_NAME).read_text()
    target = loads(text)
    assert dumps(target) == text
    assert (target.flavor, target.target, target.precision, target.batch_sizes) == (
        "tensorrt-rtx",
        "sm86",
        "fp32",
        (1,),
    )
    assert (target.weights, target.restore, target.plugin) == ("inputs", "function", None)
    assert [engine.graph for engine in target.engines] == [
        "begin",
        "step_00",
        "step_01",
        "step_02",
        "step_03",
        "decode",
    ]
    assert all(engine.layers > 5 and engine.seconds > 0 for engine in target.engines)
    assert {"nextscale", "onnx", "python", "tensorrt-rtx"} == set(target.versions)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda d: d.update(colour="red"), "colour: unknown key"),
        (lambda d: d.pop("flavor"), "flavor: this key is missing"),
        (lambda d: d.update(flavor="onnx"), "'onnx' is none of tensorrt, tensorrt-rtx"),
        (lambda d: d.update(schema_version=2), "install a newer nextscale"),
        (lambda d: d.update(schema_version=0), "manifest version 0, this nextscale reads 1"),
        (lambda d: d.update(schema_version=True), "expected the number 1"),
        (lambda d: d.update(target="86"), "'86' is not a compute capability such as sm86"),
        (lambda d: d.update(batch_sizes=[]), "batch_sizes"),
        (lambda d: d.update(batch_sizes=[4, 1]), "ascending"),
        (lambda d: d.update(batch_sizes=[1, 1]), "distinct"),
        (lambda d: d.update(restore="plugin"), "plugin: stands exactly where restore is 'plugin'"),
        (lambda d: d.update(kernel_sha256=HASH), "kernel_sha256: stands exactly"),
        (lambda d: d.update(weights="embedded"), "weights_sha256: stands exactly where weights are 'embedded'"),
        (lambda d: d.update(weights="embedded", weights_sha256="0"), "64 lower-case hex digits"),
        (lambda d: d["engines"][0].update(file="../begin.engine"), "is not a plain file name"),
        (lambda d: d["engines"][0].update(file="target.json"), "a manifest cannot list itself"),
        (lambda d: d["engines"][1].update(graph="begin"), "a graph stands twice"),
        (lambda d: d["engines"][1].update(file="begin.engine"), "a file stands twice"),
        (lambda d: d["engines"][0].update(size=-1), "not negative"),
        (lambda d: d["engines"][0].update(size=1.5), "expected a whole number"),
        (lambda d: d["engines"][0].update(scratch={"2": 0}), "an entry for each of the batch sizes [1]"),
    ],
)
def test_what_contradicts_itself_is_refused(built: Path, edit: Edit, says: str) -> None:
    data = json.loads((built / FILE_NAME).read_text())
    edit(data)
    with pytest.raises(ManifestError) as caught:
        loads(json.dumps(data))
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema_version": 1, "schema_version": 1}'])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(ManifestError):
        loads(text)
