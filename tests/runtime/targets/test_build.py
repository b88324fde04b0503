"""Building for real: only what is missing or out of date, in a hidden folder, published whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.bundles import write_bundle
from support.targets import NAME, build, change_graph, contents, edit_target, settings_of

from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.plan.recipes import plan_for, recipe
from nextscale.runtime.backends.tensorrt.library import load
from nextscale.runtime.backends.tensorrt.wishes import Wishes, embedded_sizes, settings_for
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError, BundleError
from nextscale.runtime.targets import open_target
from nextscale.runtime.targets.manifest import FILE_NAME

GRAPHS = ("begin", "step_00", "step_01", "step_02", "step_03", "decode")


def test_a_target_has_an_engine_for_every_graph_and_no_weights(built: Path, bundle: Path) -> None:
    opened = open_target(built, open_bundle(bundle))
    assert {path.name for path in built.iterdir()} == {FILE_NAME, *(f"{graph}.engine" for graph in GRAPHS)}
    assert opened.target.options == {"optimization_level": "3", "tf32": "off", "user_allocation": "required"}
    weights = (bundle / "weights.safetensors").read_bytes()[-64:]  # the last 16 numbers of a weight
    assert not any(weights in content for content in contents(built).values())
    assert [path.name for path in built.parent.iterdir()] == [built.name]  # no lock, nothing hidden


def test_what_is_up_to_date_is_left_as_it_is(own_built: Path, own_bundle: Path) -> None:
    before, said = contents(own_built), list[str]()
    report = build(own_bundle, own_built.parent, said=said)
    assert (report.reasons, report.resumed, said) == ({}, (), [])
    assert contents(own_built) == before


def test_one_changed_graph_is_one_engine(own_built: Path, own_bundle: Path) -> None:
    before, said = contents(own_built), list[str]()
    sha256 = change_graph(own_bundle, "step_02")
    report = build(own_bundle, own_built.parent, said=said)
    assert list(report.reasons) == ["step_02"]
    assert said == [f"{NAME}: {report.reasons['step_02'][0]}: building step_02 again"]
    assert "graph_sha256 was " in said[0]
    assert sha256[:12] in said[0]
    after = contents(own_built)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {FILE_NAME, "step_02.engine"}
    assert FILE_NAME in changed
    open_target(own_built, open_bundle(own_bundle))


def test_another_setting_is_named_and_builds_every_engine_again(own_built: Path, own_bundle: Path) -> None:
    said: list[str] = []
    report = build(own_bundle, own_built.parent, said=said, batch_sizes=(2, 1))
    assert said == [f"{NAME}: batch_sizes was 1 and is 1,2: building all engines again"]
    assert set(report.reasons) == set(GRAPHS)
    assert report.target.batch_sizes == (1, 2)


def test_damaged_files_are_built_again(own_built: Path, own_bundle: Path) -> None:
    size = (own_built / "begin.engine").stat().st_size
    (own_built / "begin.engine").write_bytes(b"short")
    (own_built / "decode.engine").unlink()
    edit_target(own_built, lambda data: data["engines"].pop(2))  # step_01's
    report = build(own_bundle, own_built.parent)
    assert report.reasons == {
        "begin": (f"begin.engine has 5 bytes, the manifest says {size:,}",),
        "step_01": ("it was not there",),
        "decode": ("decode.engine is missing",),
    }
    open_target(own_built, open_bundle(own_bundle))


def test_an_engine_of_a_graph_that_is_gone_goes_too(own_built: Path, own_bundle: Path) -> None:
    def one_more(data: Any) -> None:
        data["engines"].append({**data["engines"][0], "graph": "old", "file": "old.engine"})

    shutil.copy(own_built / "begin.engine", own_built / "old.engine")
    edit_target(own_built, one_more)
    report = build(own_bundle, own_built.parent)
    assert report.reasons == {}
    assert not (own_built / "old.engine").exists()
    open_target(own_built, open_bundle(own_bundle))


def test_a_damaged_manifest_builds_all_of_it_again(own_built: Path, own_bundle: Path) -> None:
    path = own_built / FILE_NAME
    path.write_bytes(path.read_bytes()[:-100])
    said: list[str] = []
    report = build(own_bundle, own_built.parent, said=said)
    assert set(report.reasons) == set(GRAPHS)
    (sentence,) = said
    assert sentence.startswith(f"{NAME}: target.json: not valid JSON")
    assert sentence.endswith(": building all engines again")


def test_a_target_of_a_newer_version_is_replaced_only_by_force(own_built: Path, own_bundle: Path) -> None:
    edit_target(own_built, lambda data: data.update(schema_version=2, colour="red"))
    before = contents(own_built)
    with pytest.raises(InputError, match=r"manifest version 2, this nextscale reads 1.*--force"):
        build(own_bundle, own_built.parent)
    assert contents(own_built) == before
    said: list[str] = []
    build(own_bundle, own_built.parent, said=said, force=True)
    assert "this target has manifest version 2" in said[0]
    open_target(own_built, open_bundle(own_bundle))


def test_a_flipped_bit_in_a_graph_is_found_before_it_is_parsed(own_bundle: Path, tmp_path: Path) -> None:
    path = own_bundle / "step_01.onnx"
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"step_01\.onnx was changed or damaged"):
        build(own_bundle, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_graph_that_is_not_the_manifests_is_refused_after_the_parse(own_bundle: Path, tmp_path: Path) -> None:
    shutil.copy(own_bundle / "step_02.onnx", own_bundle / "step_01.onnx")
    change_graph(own_bundle, "step_01")  # lists it by its hash
    with pytest.raises(BackendError, match="layers that are not the manifest's graph") as caught:
        build(own_bundle, tmp_path / "t")
    assert "cache.attn.00.out" in str(caught.value)  # step_02 writes none
    assert "state.map.in" in str(caught.value)  # and reads a larger map
    assert not (tmp_path / "t" / NAME).exists()


def test_bytes_that_are_no_graph_are_one_sentence(own_bundle: Path, tmp_path: Path) -> None:
    import onnx

    onnx.save(onnx.ModelProto(ir_version=10), own_bundle / "begin.onnx")  # a parser may take nothing for a graph
    change_graph(own_bundle, "begin")
    with pytest.raises(BackendError, match="begin"):
        build(own_bundle, tmp_path / "t")


def test_nothing_is_written_into_a_bundle_or_over_something_else(own_bundle: Path, tmp_path: Path) -> None:
    for place in (own_bundle, own_bundle / "targets"):
        with pytest.raises(InputError, match="bundles are not written to"):
            build(own_bundle, place)
    (tmp_path / "t" / NAME).mkdir(parents=True)
    (tmp_path / "t" / NAME / "thesis.tex").write_text("words")
    with pytest.raises(InputError, match="is no target"):
        build(own_bundle, tmp_path / "t")
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        build(own_bundle, tmp_path / "file" / "t")


def test_embedded_weights_are_in_every_engine_that_reads_them(own_bundle: Path, tmp_path: Path) -> None:
    """With their sizes as told beforehand; and other weights are another target."""
    report = build(own_bundle, tmp_path / "t", weights="embedded")
    assert report.target.weights_sha256 == open_bundle(own_bundle).manifest.files["weights.safetensors"].sha256
    weights = (own_bundle / "weights.safetensors").read_bytes()
    start = 8 + int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8:start])
    sizes = {name: end - begin for name, (begin, end) in ((n, e["data_offsets"]) for n, e in header.items())}
    steps = {f"step_0{i}": sizes["var/head.weight"] for i in range(4)}
    last = {path.stem for path in report.folder.glob("*.engine") if weights[-64:] in path.read_bytes()}
    assert last == set(steps)  # the end of var/head.weight
    assert embedded_sizes(open_bundle(own_bundle)) == {"begin": sizes["var/class_emb.weight"], **steps, "decode": 0}

    other = write_bundle(tmp_path / "other", weights_factor=2.0)
    said: list[str] = []
    build(other, tmp_path / "t", said=said, weights="embedded")
    assert said
    assert said[0].startswith(f"{NAME}: weights_sha256 was ")


def test_progress_goes_forward_over_all_engines(own_bundle: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int, str]] = []
    build(own_bundle, tmp_path, told=lambda *told: heard.append(told))
    assert [done for _, done, _, _ in heard] == sorted(done for _, done, _, _ in heard)
    assert heard[-1][1] == heard[-1][2]
    assert {stage for stage, *_ in heard} == {"sm86"}
    assert {what.partition(":")[0] for *_, what in heard} == {*GRAPHS, ""}


def test_what_a_flavour_cannot_do_is_refused_beforehand(own_bundle: Path) -> None:
    with pytest.raises(InputError, match="takes no plugins"):
        settings_of(own_bundle, restore="plugin")
    for wishes in ({"batch_sizes": (1, 1)}, {"batch_sizes": ()}, {"weights": "some"}, {"restore": "magic"}):
        with pytest.raises(InputError, match=next(iter(wishes))):
            settings_of(own_bundle, **wishes)
    with pytest.raises(InputError, match="0 to 5; found 6"):
        settings_of(own_bundle, optimization_level=6)
    chosen, opened = recipe("var-d16"), open_bundle(own_bundle)
    plan = plan_for(chosen, sampling=replace(chosen.sampling, top_k=0))
    wide = replace(opened, manifest=replace(opened.manifest, plan=plan))
    with pytest.raises(InputError, match="TopK takes up to 3840"):
        settings_for(wide, load("tensorrt-rtx"), "sm86", Wishes())


def test_int8_is_not_for_engines(bundle: Path) -> None:
    opened = open_bundle(bundle)
    whole = replace(opened, manifest=replace(opened.manifest, precision="int8"))
    with pytest.raises(InputError, match="is in int8, which tensorrt-rtx does not build: export one in fp32 or"):
        settings_for(whole, load("tensorrt-rtx"), "sm86", Wishes())
