"""Opening: whatever is not the bundle that the manifest describes is refused before a graph is loaded."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import edit_manifest

from nextscale.plan.errors import InputError
from nextscale.runtime import Pipeline
from nextscale.runtime.bundle import check_weights, hash_file, open_bundle
from nextscale.runtime.errors import BundleError, ManifestError
from nextscale.runtime.manifest import FILE_NAME, WEIGHTS_FILE


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_good_bundle_opens_and_knows_its_digest(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.digest == hash_file(bundle / FILE_NAME)
    assert opened.path("begin.onnx") == bundle.resolve() / "begin.onnx"
    assert open_bundle(bundle, expect_sha256=opened.digest.upper()).manifest == opened.manifest
    with pytest.raises(BundleError, match="not a file of this bundle"):
        opened.path("../secret")


def test_a_read_only_bundle_opens_and_is_not_touched(own_bundle: Path) -> None:
    for path in own_bundle.iterdir():
        path.chmod(0o444)
    own_bundle.chmod(0o555)
    before = {p.name: p.stat().st_mtime_ns for p in own_bundle.iterdir()}
    with Pipeline.open(own_bundle, threads=1) as pipeline:
        pipeline.generate(1, seed=0)
    assert {p.name: p.stat().st_mtime_ns for p in own_bundle.iterdir()} == before
    own_bundle.chmod(0o755)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "begin.onnx", "step_02.onnx", "decode.onnx"])
def test_one_flipped_bit_is_found(own_bundle: Path, name: str) -> None:
    path = own_bundle / name
    flip_bit(path, path.stat().st_size // 2)
    with pytest.raises(BundleError, match=rf"{name} was changed or damaged"):
        Pipeline.open(own_bundle)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, "step_01.onnx"])
@pytest.mark.parametrize("left", [0, 16, -1])
def test_a_truncated_file_is_found_also_without_hashing(own_bundle: Path, name: str, left: int) -> None:
    path = own_bundle / name
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(BundleError, match=rf"{name} has [\d,]+ bytes, the manifest says"):
        Pipeline.open(own_bundle, verify="size")


def test_a_missing_file(own_bundle: Path) -> None:
    (own_bundle / "step_03.onnx").unlink()
    with pytest.raises(BundleError, match=r"step_03\.onnx is missing"):
        open_bundle(own_bundle)


def test_a_symbolic_link(own_bundle: Path, tmp_path: Path) -> None:
    outside = (own_bundle / WEIGHTS_FILE).rename(tmp_path / "elsewhere")
    (own_bundle / WEIGHTS_FILE).symlink_to(outside)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(own_bundle)


def test_a_hard_link(own_bundle: Path, tmp_path: Path) -> None:
    os.link(own_bundle / WEIGHTS_FILE, tmp_path / "same")
    with pytest.raises(BundleError, match="has 2 hard links"):
        open_bundle(own_bundle)


def test_a_file_that_is_a_folder_or_a_pipe(own_bundle: Path) -> None:
    (own_bundle / "begin.onnx").unlink()
    os.mkfifo(own_bundle / "begin.onnx")
    with pytest.raises(BundleError, match="is not a regular file"):
        open_bundle(own_bundle)
    (own_bundle / "begin.onnx").unlink()
    (own_bundle / "begin.onnx").mkdir()
    with pytest.raises(BundleError, match="is not a regular file"):
        open_bundle(own_bundle)


def test_a_manifest_that_is_a_link(own_bundle: Path, tmp_path: Path) -> None:
    (own_bundle / FILE_NAME).rename(tmp_path / FILE_NAME)
    (own_bundle / FILE_NAME).symlink_to(tmp_path / FILE_NAME)
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(own_bundle)


def test_a_manifest_that_names_a_file_outside(own_bundle: Path) -> None:
    def edit(data: Any) -> None:
        data["files"]["../x"] = data["files"].pop("begin.onnx")
        data["graphs"][0]["file"] = "../x"

    edit_manifest(own_bundle, edit)
    with pytest.raises(ManifestError, match=r"manifest\.json: .*'\.\./x' is not a plain file name"):
        open_bundle(own_bundle)


def test_a_manifest_of_another_plan(own_bundle: Path) -> None:
    edit_manifest(own_bundle, lambda data: data["graphs"][2]["inputs"][0].update(buffer="state.map.0"))
    with pytest.raises(ManifestError, match=r"step_01\.inputs: the plan says"):
        open_bundle(own_bundle)


def test_a_manifest_that_is_too_long(own_bundle: Path) -> None:
    with (own_bundle / FILE_NAME).open("r+b") as stream:
        stream.truncate(10 * 2**30)  # sparse
    with pytest.raises(BundleError, match="no manifest is so long"):
        open_bundle(own_bundle)


def test_no_folder_and_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no such folder; make one with `nextscale export`"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"it has no manifest\.json"):
        open_bundle(tmp_path)


def test_weights_may_be_hashed_by_who_reads_them(own_bundle: Path) -> None:
    weights = own_bundle / WEIGHTS_FILE
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    opened = open_bundle(own_bundle, later=(WEIGHTS_FILE,))
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed or damaged"):
        check_weights(opened)
    weights.write_bytes(data[:-1])
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        open_bundle(own_bundle, later=(WEIGHTS_FILE,))


def test_another_bundle_than_pinned(bundle: Path) -> None:
    with pytest.raises(BundleError, match="is another bundle than asked for"):
        open_bundle(bundle, expect_sha256="0" * 64)
    with pytest.raises(InputError, match="64 hex digits"):
        open_bundle(bundle, expect_sha256="abc")
    with pytest.raises(InputError, match="verify is 'full' or 'size'"):
        open_bundle(bundle, verify="fast")


def test_a_manifest_with_flipped_bits_never_ends_in_another_error(bundle: Path, tmp_path: Path) -> None:
    """Whatever is in the file, the error is ours: 150 drawn damages of the manifest's text."""
    text = (bundle / FILE_NAME).read_bytes()
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in bundle.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())

    @given(st.integers(0, len(text) - 1), st.integers(0, 255), st.booleans())
    def damage(place: int, byte: int, cut: bool) -> None:
        end = text[place + 1 :] if not cut else b""
        (broken / FILE_NAME).write_bytes(text[:place] + bytes([byte]) + end)
        with contextlib.suppress(BundleError, ManifestError):
            open_bundle(broken, verify="size")

    damage()
