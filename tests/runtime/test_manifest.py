"""The manifest's JSON: what is written is read back, and what is wrong is named by its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.bundles import text_plan, write_bundle

import nextscale.runtime.manifest as manifests
from nextscale.plan.types import Plan
from nextscale.runtime.errors import ManifestError

SCHEMA = json.loads((Path(manifests.__file__).parent / "manifest.schema.json").read_text())


@pytest.fixture
def data(bundle: Path) -> Any:
    return json.loads((bundle / manifests.FILE_NAME).read_text())


def test_round_trip(bundle: Path) -> None:
    text = (bundle / manifests.FILE_NAME).read_text()
    manifest = manifests.loads(text)
    assert manifests.dumps(manifest) == text
    assert isinstance(manifest.plan, Plan)
    assert [g.name for g in manifest.graphs] == ["begin", "step_00", "step_01", "step_02", "step_03", "decode"]
    assert manifests.digest(text) == manifests.digest(text.encode())


def test_a_tensor_stands_on_one_line(bundle: Path) -> None:
    lines = (bundle / manifests.FILE_NAME).read_text().splitlines()
    (line,) = [line for line in lines if '"tape.var.k.01.in"' in line and '"shape": [11' in line]
    assert json.loads(line.strip().rstrip(","))["access"] == "read"


def test_the_published_schema_accepts_what_is_written(data: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(data, SCHEMA)


@pytest.mark.parametrize("prefix", [False, True])
def test_the_published_schema_accepts_bundles_of_texts(prefix: bool, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "texts", text_plan(prefix))
    text = (folder / manifests.FILE_NAME).read_text()
    jsonschema.validate(json.loads(text), SCHEMA)
    assert manifests.dumps(manifests.loads(text)) == text


def set_at(*path: Any) -> Callable[[Any, Any], None]:
    def change(data: Any, value: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


WRONG: list[tuple[str, tuple[Any, ...], Any, str]] = [
    ("unknown key", ("graphs", 1, "colour"), "red", r"graphs\[1\]\.colour: unknown key"),
    ("unknown key at the top", ("sampling",), {}, r"^sampling: unknown key"),
    ("file outside", ("graphs", 0, "file"), "../begin.onnx", r"graphs\[0\]\.file: '../begin.onnx' is not a plain"),
    ("file in a folder", ("graphs", 0, "file"), "a/begin.onnx", "is not a plain file name"),
    ("absolute file", ("graphs", 0, "file"), "/etc/passwd", "is not a plain file name"),
    ("file of another drive", ("graphs", 0, "file"), "C:begin.onnx", "is not a plain file name"),
    ("hidden parent", ("weights", "var/head.weight", "file"), "..", "is not a plain file name"),
    ("file not listed", ("graphs", 0, "file"), "other.onnx", "is not listed under files"),
    ("text for a number", ("graphs", 1, "inputs", 0, "offset"), "0", r"inputs\[0\]\.offset: expected a whole number"),
    ("true for a number", ("files", "begin.onnx", "size"), True, r"files\.begin\.onnx\.size: expected a whole number"),
    ("negative offset", ("graphs", 1, "inputs", 0, "offset"), -1, "offset that is not negative"),
    ("shape of nothing", ("graphs", 1, "inputs", 0, "shape"), ["rows", 0], r"shape: 0 is neither"),
    ("unknown symbol", ("graphs", 1, "inputs", 0, "shape"), ["batch", 8], r"shape: 'batch' is neither"),
    ("fraction in a shape", ("graphs", 1, "inputs", 0, "shape"), ["rows", 0.5], "expected int or str"),
    ("no shape", ("graphs", 1, "inputs", 0, "shape"), [], "at least one axis"),
    ("unknown dtype", ("graphs", 1, "inputs", 0, "dtype"), "float8", r"dtype: 'float8' is none of"),
    ("unknown access", ("graphs", 1, "inputs", 0, "access"), "write", r"access: 'write' is none of"),
    ("hash that is none", ("files", "begin.onnx", "sha256"), "abc", "64 lower-case hex digits"),
    ("precision", ("precision",), "fp8", "precision: 'fp8' is none of fp32"),
    ("tokenizer outside", ("tokenizer",), "../tokenizer.json", "tokenizer: '../tokenizer.json' is not a plain file"),
    ("tokenizer not listed", ("tokenizer",), "tokenizer.json", "tokenizer: 'tokenizer.json' is not listed under files"),
    ("class names", ("classes",), ["one"], "1 names for a model of 3 classes"),
    ("plan", ("plan", "steps", 0, "grid"), [1], "plan"),
    ("a list for an object", ("files",), [], "files: expected an object"),
    ("itself", ("files", "manifest.json"), {"sha256": "0" * 64, "size": 1}, "cannot list itself"),
    ("a graph twice", ("graphs", 1, "name"), "begin", "a name stands twice"),
]


@pytest.mark.parametrize("path, value, message", [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_what_is_wrong_is_named(data: Any, path: tuple[Any, ...], value: Any, message: str) -> None:
    set_at(*path)(data, value)
    with pytest.raises(ManifestError, match=message):
        manifests.from_json(data)


def test_a_missing_key_is_named(data: Any) -> None:
    del data["graphs"][2]["outputs"][0]["buffer"]
    with pytest.raises(ManifestError, match=r"graphs\[2\]\.outputs\[0\]\.buffer: this key is missing"):
        manifests.from_json(data)


@pytest.mark.parametrize(
    "version, message",
    [(2, "export it again"), (4, "install a newer nextscale"), ("3", "expected the number 3"), (None, "expected")],
)
def test_other_versions_say_what_to_do(data: Any, version: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        manifests.from_json({**data, "schema_version": version, "from the future": 1})


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not valid JSON"),
        ("[]", "is a JSON object"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"schema_version": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
    ],
)
def test_text_that_is_no_manifest(text: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        manifests.loads(text)


def test_an_exporter_cannot_write_a_manifest_that_is_refused(bundle: Path) -> None:
    from dataclasses import replace

    manifest = manifests.loads((bundle / manifests.FILE_NAME).read_text())
    with pytest.raises(ManifestError, match="precision"):
        manifests.dumps(replace(manifest, precision="fp8"))
