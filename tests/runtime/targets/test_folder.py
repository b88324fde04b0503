"""Opening a target: what does not fit is refused by its field, with the command that rebuilds it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.bundles import edit_manifest
from support.targets import NAME, change_graph, edit_target

from nextscale.plan.errors import InputError
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.targets import check_machine, find_target, open_target
from nextscale.runtime.targets.folder import read_target
from nextscale.runtime.targets.manifest import FILE_NAME
from nextscale.runtime.targets.places import in_cache, writable_place


def refusal(folder: Path, bundle: Path, verify: str = "full") -> str:
    with pytest.raises(BackendError) as caught:
        open_target(folder, open_bundle(bundle), verify)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_target_opens_beside_its_bundle(own_built: Path, own_bundle: Path) -> None:
    bundle = open_bundle(own_bundle)
    assert find_target(bundle, "tensorrt-rtx", "sm86") == own_built
    opened = open_target(own_built, bundle)
    for graph in bundle.manifest.graphs:
        assert opened.path(graph.name) == own_built / f"{graph.name}.engine"
        assert opened.engine(graph.name).graph_sha256 == bundle.manifest.files[graph.file].sha256


def test_one_that_is_not_there_is_told_with_the_command_that_builds_it(own_built: Path, own_bundle: Path) -> None:
    bundle = open_bundle(own_bundle)
    with pytest.raises(BackendError) as caught:
        find_target(bundle, "tensorrt-rtx", "sm89")
    assert f"nextscale build {own_bundle} --flavor tensorrt-rtx --target sm89" in str(caught.value)
    assert f"there is {NAME}" in str(caught.value)
    with pytest.raises(BackendError, match=r"nothing is built there.*-o "):
        find_target(bundle, "tensorrt-rtx", "sm86", own_bundle.parent / "elsewhere")
    with pytest.raises(BackendError, match=r"builds none for sm90; .* --flavor tensorrt --target sm90`"):
        find_target(bundle, "tensorrt-rtx", "sm90", known=("sm86", "sm89"))


def test_what_lies_in_the_users_cache_is_found(
    built: Path, own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    bundle = open_bundle(own_bundle)
    there = shutil.copytree(built, in_cache(bundle) / NAME)
    assert find_target(bundle, "tensorrt-rtx", "sm86") == there
    assert tmp_path / "cache" in there.parents


def test_a_place_that_cannot_be_written_gives_way_to_the_cache(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(own_bundle)
    assert writable_place(bundle) == own_bundle.with_name(f"{own_bundle.name}.targets")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    assert writable_place(bundle) == in_cache(bundle)


def test_an_altered_graph_is_refused_by_its_hash(own_built: Path, own_bundle: Path) -> None:
    change_graph(own_bundle, "step_02")
    said = refusal(own_built, own_bundle)
    assert "graph_sha256 of step_02 was " in said
    command = f"nextscale build {own_bundle} --flavor tensorrt-rtx --target sm86"
    assert f"rebuild it with `{command}`" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(precision="fp16"), "precision was fp16 and is fp32"),
        (lambda d: d["engines"].pop(), "graph_sha256 of decode was absent"),
        (lambda d: d.update(weights="embedded", weights_sha256="0" * 64), "weights_sha256 was 000000000000..."),
        (lambda d: d.update(library_version=3), "library_version: expected a string"),
    ],
)
def test_what_was_built_for_something_else_is_refused(
    own_built: Path, own_bundle: Path, change: Any, says: str
) -> None:
    edit_target(own_built, change)
    said = refusal(own_built, own_bundle)
    assert says in said
    assert "nextscale build" in said


def test_damaged_engines_are_refused_by_length_and_hash(own_built: Path, own_bundle: Path) -> None:
    path = own_built / "step_01.engine"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    said = refusal(own_built, own_bundle)
    assert "step_01.engine was changed or damaged: its sha256 is " in said
    assert said.endswith("--target sm86 --force`")
    open_target(own_built, open_bundle(own_bundle), verify="size")
    path.write_bytes(content[:-1])
    assert "bytes, the manifest says" in refusal(own_built, own_bundle, "size")
    path.unlink()
    assert "is missing" in refusal(own_built, own_bundle)
    path.symlink_to(own_built / "begin.engine")
    assert "is a link" in refusal(own_built, own_bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]"])
def test_a_damaged_manifest_is_one_sentence(own_built: Path, own_bundle: Path, content: bytes) -> None:
    (own_built / FILE_NAME).write_bytes(content)
    assert "nextscale build" in refusal(own_built, own_bundle)


def test_a_folder_that_is_no_target_is_refused(own_bundle: Path, tmp_path: Path) -> None:
    assert "is not a built target" in refusal(tmp_path, own_bundle)
    assert "is not a built target" in refusal(tmp_path / "nowhere", own_bundle)
    with pytest.raises(InputError, match="'full' or 'size'"):
        open_target(tmp_path, open_bundle(own_bundle), "none")


def test_a_fine_tune_uses_the_engines_of_its_architecture(own_built: Path, own_bundle: Path) -> None:
    edit_manifest(own_bundle, lambda data: data["source"]["files"][0].update(sha256="f" * 64))
    assert open_target(own_built, open_bundle(own_bundle)).target.bundle == "tiny"


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (("tensorrt", "10.13.3", "sm86"), "flavor tensorrt-rtx, and here it is tensorrt"),
        (("tensorrt-rtx", "9.9", "sm86"), "library_version "),
        (("tensorrt-rtx", None, "sm120"), "target sm86, and here it is sm120"),
    ],
)
def test_another_machine_is_refused_by_field(built: Path, here: tuple[str, str | None, str], says: str) -> None:
    target = read_target(built)
    flavor, version, sm = here
    with pytest.raises(BackendError) as caught:
        check_machine(target, flavor, version or target.library_version, sm, built.parent / "tiny", built.parent)
    assert says in str(caught.value)
    place = f"{built.parent}/tiny --flavor {flavor} --target {sm} -o {built.parent}"
    assert str(caught.value).endswith(f"`nextscale build {place}`")


def test_its_own_machine_is_let_through(built: Path) -> None:
    target = read_target(built)
    check_machine(target, target.flavor, target.library_version, target.target, built.parent / "tiny")
