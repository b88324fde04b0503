"""The contract is public: a program that knows the manifest alone makes the pipeline's pictures."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import chain_from_manifest
import numpy as np
import pytest
from chain_from_manifest import Chain, png, uniforms
from PIL import Image
from support.bundles import edit_manifest, text_plan, tiny_plan, write_bundle

from nextscale.runtime import Pipeline, Result

VECTORS = Path(__file__).parents[1] / "runtime" / "data" / "noise.json"
BUNDLES = ("tiny_bundle", "tiny_pruned_bundle")


def by_pipeline(bundle: Path, labels: list[int], seed: int, **settings: float) -> Result:
    with Pipeline.open(bundle, threads=1) as pipeline:
        classes = pipeline.manifest.plan.model().classes
        return pipeline.generate([None if label == classes else label for label in labels], seed=seed, **settings)


@pytest.mark.parametrize("fixture", BUNDLES)
def test_the_same_tokens_and_pictures(fixture: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(fixture)
    wanted = by_pipeline(bundle, [3, 0, 10], seed=2**40 + 7, guidance_scale=2.5, temperature=0.8)
    tokens, pictures = Chain(bundle, 3, threads=1).run([3, 0, 10], 2**40 + 7, guidance_scale=2.5, temperature=0.8)
    for ours, theirs in zip(tokens, wanted.tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(pictures.transpose(0, 2, 3, 1), wanted.floats, rtol=0, atol=1e-6)


def test_buffers_hold_nothing_over(tiny_pruned_bundle: Path) -> None:
    chain = Chain(tiny_pruned_bundle, 1, threads=1)
    first = chain.run([1], 5)[1].copy()
    other = chain.run([2], 6)[1].copy()
    np.testing.assert_array_equal(chain.run([1], 5)[1], first)
    assert not np.array_equal(first, other)


def test_both_noise_fields_and_a_grid_that_is_not_square(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "smooth", tiny_plan(smooth=True))
    tokens, _ = Chain(bundle, 2, threads=1).run([0, 2], 1)
    for ours, theirs in zip(tokens, by_pipeline(bundle, [0, 2], 1).tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_noise_is_the_committed_one() -> None:
    for case in json.loads(VECTORS.read_text())["vectors"]:
        values = case["numerators"]
        found = uniforms(case["seed"], case["image"], case["step"], case["stream"], len(values))
        np.testing.assert_array_equal(found.astype(np.float64) * 2**24, values)


def test_tapes_are_written_in_place(tiny_bundle: Path) -> None:
    chain = Chain(tiny_bundle, 2, threads=1)
    tensors = [t for g in chain.graphs for t in g["inputs"] + g["outputs"] if t["buffer"] == "tape.var.k.00"]
    for tensor in tensors:
        row = chain.buffers["tape.var.k.00"].nbytes // 14  # 1 + 4 + 9 rows; the last step leaves none
        address = chain.buffers["tape.var.k.00"].ctypes.data + tensor["offset"] * row
        assert chain.view(tensor).ctypes.data == address


def test_it_knows_onnxruntime_and_numpy_only() -> None:
    tree = ast.parse(Path(chain_from_manifest.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names}
    assert roots - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_the_script_writes_pngs(tiny_pruned_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain_from_manifest.main([str(tiny_pruned_bundle), "--labels", "4,9", "--seed", "11", "--out", str(tmp_path / "o")])
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in paths] == ["seed11-00000-class4.png", "seed11-00001-class9.png"]
    wanted = by_pipeline(tiny_pruned_bundle, [4, 9], 11).images
    for path, pixels in zip(paths, wanted, strict=True):
        with Image.open(path) as image:
            found = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(found - pixels).max() <= 1


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 5, 2), (3, 2, 7)])
def test_any_picture_becomes_a_png(shape: tuple[int, ...], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape)
    (tmp_path / "a.png").write_bytes(png(pixels / np.float64(255)))
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--labels=-3"], r"labels are 0 to 3; found \[-3\]"),
        (["--labels", "0,4"], r"labels are 0 to 3; found \[0, 4\]"),
        (["--seed=-1"], r"a seed is 0 to 2\*\*63 - 1; found -1"),
        (["--seed", str(2**63)], r"a seed is 0 to 2\*\*63 - 1; found 9223372036854775808"),
        (["--features", "{npy}"], "this bundle makes pictures of classes: give --labels"),
        (["--features", "{npy}", "--labels", "1"], "not allowed with argument --features"),
        (["--labels", "star"], r"--labels: invalid numbers value: 'star'"),
        (["--labels", "1,"], r"--labels: invalid numbers value"),
    ],
)
def test_what_the_contract_does_not_know_is_refused_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    np.save(tmp_path / "a.npy", np.ones((2, 5), np.float32))
    arguments = [argument.format(npy=tmp_path / "a.npy") for argument in arguments]
    with pytest.raises(SystemExit) as refused:
        chain_from_manifest.main([str(bundle), *arguments, "--out", str(tmp_path / "o")])
    assert re.search(sentence, f"{refused.value}{capsys.readouterr().err}")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("prefix", [False, True])
def test_features_make_the_pictures_of_their_prompts(
    prefix: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a bundle with a text encoder, whose own graph is left out."""
    bundle = write_bundle(tmp_path / "bundle", text_plan(prefix))
    with Pipeline.open(bundle, threads=1) as pipeline:
        made = pipeline.encode(["a red cat", "castle"])
        wanted = pipeline.generate(["a red cat", "castle"], seed=5)
    files = []
    for i, (rows, length) in enumerate(made):
        np.save(tmp_path / f"{i}.npy", rows)
        files += ["--features", f"{tmp_path / str(i)}.npy:{length}"]
    chain_from_manifest.main([str(bundle), *files, "--seed", "5", "--out", str(tmp_path / "o")])
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in paths] == ["seed5-00000.png", "seed5-00001.png"]
    for path, pixels in zip(paths, wanted.images, strict=True):
        with Image.open(path) as image:
            found = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(found - pixels).max() <= 1
    tokens, _ = Chain(bundle, 2, threads=1).run(made, 5)
    for ours, theirs in zip(tokens, wanted.tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("prefix", "arguments", "sentence"),
    [
        (False, ["--labels", "1"], r"pictures of texts: give a text's features, --features FILE\.npy \(rows, width\)"),
        (False, [], "this bundle makes pictures of texts"),
        (
            False,
            ["--features", "{good}:3"],
            r"1 to all rows count; found the shape \(2, 5\), of which 3 count",
        ),
        (False, ["--features", "{good}:0"], "of which 0 count"),
        (False, ["--features", "{wide}"], r"features are \(1 to 6, 5\) finite numbers, .*; found the shape \(2, 4\)"),
        (False, ["--features", "{nan}"], "finite numbers"),
        (True, ["--features", "{good}"], r"features are \(6 to 6, 5\) finite numbers, .*; found the shape \(2, 5\)"),
        (False, ["--features", "{whole}"], "--features: invalid features value"),
        (False, ["--features", "{none}"], "--features: invalid features value"),
    ],
)
def test_texts_are_refused_in_a_sentence(
    prefix: bool, arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_bundle(tmp_path / "bundle", text_plan(prefix))
    nan = np.full((2, 5), np.nan, np.float32)
    arrays = {"good": np.ones((2, 5), np.float32), "wide": np.ones((2, 4)), "nan": nan, "whole": np.ones((2, 5), int)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    names = {name: tmp_path / f"{name}.npy" for name in (*arrays, "none")}
    with pytest.raises(SystemExit) as refused:
        chain_from_manifest.main([str(bundle), *(a.format(**names) for a in arguments), "--out", str(tmp_path / "o")])
    assert re.search(sentence, f"{refused.value}{capsys.readouterr().err}")
    assert not (tmp_path / "o").exists()


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"is no bundle: it has no manifest\.json"):
        Chain(tmp_path, 1)


def flip_a_bit(bundle: Path) -> None:
    content = bytearray((bundle / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(content)


def name_a_file_outside(bundle: Path) -> None:
    edit_manifest(bundle, lambda data: data.update(files={"../begin.onnx": data["files"]["begin.onnx"]}))


def raise_the_version(bundle: Path) -> None:
    edit_manifest(bundle, lambda data: data.update(schema_version=4))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip_a_bit, "weights.safetensors is not the file that the manifest lists"),
        (name_a_file_outside, "is not a plain file of this bundle"),
        (raise_the_version, "has manifest version 4, this program reads 3"),
    ],
)
def test_what_is_not_listed_or_not_read_is_refused(
    damage: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    damage(write_bundle(tmp_path / "bundle"))
    with pytest.raises(SystemExit, match=sentence):
        Chain(tmp_path / "bundle", 1)
