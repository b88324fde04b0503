"""Packed targets: what they compute, what lies in them once, and when they are made, taken and refused."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from support.packed import edit, pack
from support.targets import change_graph, contents

from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.runtime import Pipeline
from nextscale.runtime.backends.onnxruntime import OnnxRuntime
from nextscale.runtime.backends.packed import build as building
from nextscale.runtime.backends.packed import machine, onnx_file
from nextscale.runtime.backends.packed.target import FILE_NAME, WEIGHTS, read
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError, BundleError
from nextscale.runtime.targets.places import in_cache


def pictures(bundle: Path, **options: Any) -> list[np.ndarray]:
    """Tokens of every step and pictures, of two passes."""
    with Pipeline.open(bundle, OnnxRuntime(threads=1, **options), batch_sizes=(2,)) as pipeline:
        made = pipeline.generate([1, 2, None], seed=5)
        return [*made.tokens, made.floats]


def test_it_computes_what_sessions_with_copies_of_their_own_do_bit_for_bit(packed: Path) -> None:
    for mine, theirs in zip(pictures(packed, packed=True), pictures(packed, prepack=True), strict=True):
        assert np.array_equal(mine, theirs)


def test_a_pipeline_takes_it_by_itself(packed: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "nextscale.runtime"), Pipeline.open(packed, threads=1) as pipeline:
        size = read(next(packed.with_name("tiny.targets").iterdir())).weights.size
        assert pipeline.memory.weights == size
    assert "not packed" not in caplog.text
    with Pipeline.open(packed, OnnxRuntime(threads=1, packed=False)) as pipeline:
        assert pipeline.memory.weights == (packed / "weights.safetensors").stat().st_size


def test_without_one_the_command_is_told_and_a_wanted_one_is_an_error(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "nextscale.runtime"), Pipeline.open(tiny_bundle, threads=1):
        (line,) = (record.getMessage() for record in caplog.records if "not packed" in record.getMessage())
        assert f"`nextscale build {tiny_bundle} --flavor onnxruntime-cpu`" in line
    with pytest.raises(
        BackendError, match=rf"has no target onnxruntime-cpu-{machine.instructions()}-\S+-fp32: make it with"
    ):
        Pipeline.open(tiny_bundle, OnnxRuntime(packed=True))
    with pytest.raises(BackendError, match=rf"--flavor onnxruntime-cpu -o {tmp_path}`"):
        Pipeline.open(tiny_bundle, targets=tmp_path)
    for options in ({"packed": True}, {"targets": tmp_path}):
        with pytest.raises(InputError, match="take one"):
            OnnxRuntime(prepack=True, **options)
    with pytest.raises(InputError, match="verify is 'full' or 'size'; found 'ful'"):
        OnnxRuntime(verify="ful")


def test_each_weight_lies_once_in_one_file_that_all_graphs_name(packed: Path) -> None:
    (folder,) = packed.with_name("tiny.targets").iterdir()
    places: dict[str, set[str]] = {}
    blobs: dict[int, int] = {}
    for path in folder.glob("*.onnx"):
        for tensor, entries in onnx_file.external(onnx_file.read(path)):
            assert entries["location"] == WEIGHTS
            if "/" in tensor.name:  # a weight of the bundle; others ONNX Runtime made for one graph
                places.setdefault(tensor.name, set()).add(entries["offset"])
            blobs[int(entries["offset"])] = int(entries["length"])
            for key, value in entries.items():
                if key.startswith("prepacked"):
                    places.setdefault(f"{tensor.name} {value.split('+')[0]}", set()).add(value)
                    for offset, length, _ in (part.split(";") for part in value.split("|")[1:]):
                        blobs[int(offset)] = int(length)
    assert sum("Gemm" in name for name in places) > 10
    assert all(len(where) == 1 for where in places.values())
    ends = [0]
    for offset, length in sorted(blobs.items()):
        assert offset >= ends[-1]
        ends.append(offset + length)
    assert ends[-1] == (folder / WEIGHTS).stat().st_size
    assert {path.name for path in folder.iterdir()} == {
        FILE_NAME,
        WEIGHTS,
        *(path.name for path in packed.glob("*.onnx")),
    }


def test_it_is_made_once_and_again_where_something_differs(own_packed: Path, own_target: Path) -> None:
    before = contents(own_target)
    said: list[str] = []
    assert pack(own_packed, said=said).why is None
    assert (said, contents(own_target)) == ([], before)
    report = pack(own_packed, said=said, force=True)
    assert (report.why, report.packed.size) == ("asked for", read(own_target).size)
    assert said[0].startswith("packs ")
    assert "MB in " in said[0]
    edit(own_target, lambda data: data.update(library_version="1.0"))
    assert "ONNX Runtime: 1.0 then, " in (pack(own_packed).why or "")
    change_graph(own_packed, "step_01")
    assert pack(own_packed).why == "the graphs step_01"
    (own_target / WEIGHTS).write_bytes((own_target / WEIGHTS).read_bytes()[:-1])
    assert "bytes, the manifest says" in (pack(own_packed).why or "")
    (own_target / FILE_NAME).write_text("{")
    assert "not valid JSON" in (pack(own_packed).why or "")
    assert pack(own_packed).why is None


def test_one_that_fits_is_taken_wherever_it_lies(
    own_packed: Path, own_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a bundle that others wrote lies one for something else; the user's own is in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = in_cache(open_bundle(own_packed, verify="size"))
    pack(own_packed, cache)
    edit(own_target, lambda data: data.update(weights_sha256="0" * 64))
    with Pipeline.open(own_packed, OnnxRuntime(packed=True)) as pipeline:
        assert pipeline.memory.weights == read(own_target).weights.size


def test_half_precision_is_not_packed(own_packed: Path) -> None:
    opened = open_bundle(own_packed, verify="size")
    half = replace(opened, manifest=replace(opened.manifest, precision="fp16"))
    with pytest.raises(InputError, match="is in fp16, and only weights in fp32 or int8 are packed"):
        building.build_packed(half, own_packed.parent / "elsewhere", lambda *told: None)


def test_others_wait_for_the_one_that_packs(own_packed: Path, own_target: Path) -> None:
    said: list[str] = []
    moved = own_target.rename(own_target.parent / "made")
    with FileLock(own_target.parent / f".{own_target.name}.lock"):
        other = threading.Thread(target=pack, args=(own_packed,), kwargs={"said": said})
        other.start()
        other.join(2.0)
        assert other.is_alive()
        assert said == [f"another process is packing {own_target}: waiting for it"]
        moved.rename(own_target)
    other.join(60)
    assert not other.is_alive()
    assert len(said) == 1  # it was there


def test_one_that_is_there_needs_no_place_to_write(own_packed: Path, own_target: Path) -> None:
    before = own_target.parent.stat().st_mtime_ns
    assert pack(own_packed).why is None
    assert own_target.parent.stat().st_mtime_ns == before


def test_an_interrupted_one_leaves_the_old_one_and_nothing_else(own_packed: Path, own_target: Path) -> None:
    def stop(stage: str, done: int, total: int, what: str) -> None:
        if what == "step_02":
            raise KeyboardInterrupt

    before = contents(own_target)
    with pytest.raises(KeyboardInterrupt):
        pack(own_packed, told=stop, force=True)
    assert contents(own_target) == before
    assert [path.name for path in own_target.parent.iterdir()] == [own_target.name]
    with pytest.raises(KeyboardInterrupt):
        pack(own_packed, own_packed.parent / "elsewhere", told=stop)
    assert not (own_packed.parent / "elsewhere").exists()


def test_a_full_disk_is_told_before_anything_is_written(
    own_packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SIZE", 1e12)
    with pytest.raises(EnvironmentProblem, match=r"MB free, and packing takes up to .*: make room"):
        pack(own_packed, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_places_that_are_none_are_refused(own_packed: Path, own_target: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bundles are not written to"):
        pack(own_packed, own_packed)
    (tmp_path / "other" / own_target.name).mkdir(parents=True)
    with pytest.raises(InputError, match=r"is no target \(it has no packed\.json\): remove it"):
        pack(own_packed, tmp_path / "other")


def test_a_bundle_that_was_damaged_is_not_packed(own_packed: Path) -> None:
    weights = own_packed / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    opened = open_bundle(own_packed)
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed or damaged"):
        building.build_packed(opened, own_packed.parent / "elsewhere", lambda *told: None)


def test_the_bundles_weights_are_hashed_where_they_are_read_alone(own_packed: Path, packed: Path) -> None:
    weights = own_packed / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for mine, whole in zip(pictures(own_packed, packed=True), pictures(packed, packed=True), strict=True):
        np.testing.assert_array_equal(mine, whole)
    for own in ({"packed": False}, {"prepack": True}):
        with pytest.raises(BundleError, match=r"weights\.safetensors was changed or damaged"):
            pictures(own_packed, **own)


def test_processors_are_told_apart_by_what_numpy_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*names: str) -> str:
        extensions = {"SIMD Extensions": {"baseline": ["SSE"], "found": list(names)}}
        monkeypatch.setattr(np, "show_config", lambda mode: extensions)
        return machine.instructions.__wrapped__()

    assert found("X86_V3", "X86_V4") == found("AVX2", "AVX512F", "AVX512_SKX") == "avx512"
    assert found("X86_V3") == found("FMA3", "AVX2") == "avx2"
    assert found("ASIMD") == "neon"
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    assert found() == "riscv64"
