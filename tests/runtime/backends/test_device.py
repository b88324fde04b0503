"""A slot's memory on a device, and the arena of weights, on the double of a device."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support.host_cuda import HostDevice

import nextscale.runtime.backends.arena as arenas
from nextscale.runtime.arrays import array_of
from nextscale.runtime.backends.arena import Arena, find_weights, place, read_header
from nextscale.runtime.backends.base import Bound
from nextscale.runtime.backends.device import DeviceMemory
from nextscale.runtime.backends.kernels import ChainKernels
from nextscale.runtime.backends.resident import ordinal_of, record
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError, BundleError
from nextscale.runtime.noise import step_uniforms


def test_bytes_reach_the_device_and_come_back() -> None:
    device = HostDevice()
    memory = DeviceMemory(device, 4096)
    memory.view(256, (2, 3), "float32")[...] = np.arange(6).reshape(2, 3)
    memory.push(256, 24)
    memory.stream.copy(memory.address + 512, memory.address + 256, 24)
    memory.pull(512, 24)
    assert memory.view(512, (6,), "float32").tolist() == [0, 1, 2, 3, 4, 5]


def test_it_is_zero_at_first_on_either_side() -> None:
    memory = DeviceMemory(HostDevice(), 1000)
    assert not memory.view(0, (1000,), "uint8").any()
    memory.pull(0, 1000)
    assert not memory.view(0, (1000,), "uint8").any()


def test_what_is_asked_for_happens_in_its_order() -> None:
    """The double runs nothing before somebody waits."""
    memory = DeviceMemory(HostDevice(), 256)
    memory.view(0, (1,), "int32")[0] = 7
    memory.push(0, 4)
    memory.copy(0, 4, memory.address + 128)
    assert memory.view(128, (1,), "int32")[0] == 0
    memory.pull(128, 4)
    assert memory.view(128, (1,), "int32")[0] == 7


def test_the_host_sees_only_what_it_is_meant_to() -> None:
    device = HostDevice()
    memory = DeviceMemory(device, 10_000, visible=512)
    assert device.asked("pin") == [("pin", 512)]
    assert memory.view(0, (128,), "float32").nbytes == 512
    for action in (
        lambda: memory.view(508, (2,), "float32"),
        lambda: memory.push(0, 513),
        lambda: memory.pull(512, 1),
        lambda: memory.view(-4, (1,), "float32"),
    ):
        with pytest.raises(BackendError, match="stay on the device: the host sees the first 512"):
            action()


def test_bfloat16_is_seen_as_its_bits() -> None:
    assert DeviceMemory(HostDevice(), 64).view(0, (2, 4), "bfloat16").dtype == np.uint16


def test_arrays_outlive_what_they_were_taken_from() -> None:
    device = HostDevice()
    memory = DeviceMemory(device, 256, scratch=512)
    kept = memory.view(0, (4,), "int32")
    kept[:] = 3
    memory.close()
    del memory
    assert {block.kind for block in device.blocks.values()} == {"pinned"}
    assert kept.tolist() == [3, 3, 3, 3]
    del kept
    assert not device.blocks


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 2), st.integers(0, 2**63 - 1))
def test_noise_of_the_device_is_the_noise(images: int, count: int, stream: int, seed: int) -> None:
    device = HostDevice()
    memory, kernels = DeviceMemory(device, 4096), ChainKernels(device)  # type: ignore[arg-type]
    keys = Bound("keys", "int64", (images, 2), memory.address)
    out = Bound("noise.in", "float32", (images, count), memory.address + 1024)
    memory.view(0, (images, 2), "int64")[...] = [(seed, 9 + i) for i in range(images)]
    call = kernels.uniforms(memory.stream, keys, out, 3, stream)  # type: ignore[arg-type]
    memory.push(0, 1024)
    call.execute()
    memory.pull(1024, images * count * 4)
    wanted = step_uniforms(seed, range(9, 9 + images), 3, stream, (count,))
    assert np.array_equal(memory.view(1024, (images, count), "float32"), wanted)


def test_flags_are_set_and_never_cleared() -> None:
    device = HostDevice()
    memory, kernels = DeviceMemory(device, 4096), ChainKernels(device)  # type: ignore[arg-type]
    values = Bound("logits.out", "float32", (4, 2, 3), memory.address)
    flags = Bound("flags", "int32", (4,), memory.address + 1024)
    memory.view(0, (4, 2, 3), "float32")[1, 1, 2] = np.nan
    memory.view(0, (4, 2, 3), "float32")[3, 0, 0] = -np.inf
    memory.view(1024, (4,), "int32")[0] = 1
    memory.push(0, 4096)
    kernels.flag_nonfinite(memory.stream, values, flags).execute()  # type: ignore[arg-type]
    memory.pull(1024, 16)
    assert memory.view(1024, (4,), "int32").tolist() == [1, 1, 0, 1]


def test_a_captured_graph_runs_what_was_recorded_with_what_is_there_then() -> None:
    memory = DeviceMemory(HostDevice(), 256)

    class Copy:
        def execute(self) -> None:
            memory.copy(0, 4, memory.address + 128)

    graph = record(memory.stream, [Copy(), Copy()])
    for value in (5, 6):
        memory.view(0, (1,), "int32")[0] = value
        memory.push(0, 4)
        graph.execute()
        memory.pull(128, 4)
        assert memory.view(128, (1,), "int32")[0] == value
    assert memory.device.log.count(("graph", 2)) == 2  # type: ignore[attr-defined]


def test_memory_goes_when_nobody_holds_an_array_on_it() -> None:
    device = HostDevice()
    memory = DeviceMemory(device, 256, scratch=512)
    array = array_of(memory, 0, (4,), "float32")
    memory.close()
    assert [block.size for block in device.blocks.values() if block.kind == "device"] == [256]
    del array
    assert not [block for block in device.blocks.values() if block.kind == "device"]


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:0", 0), ("cuda:12", 12)])
def test_the_number_of_a_device(device: str, number: int) -> None:
    assert ordinal_of(device, "tensorrt") == number


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 64, 2**24])
def test_every_weight_arrives_in_pieces_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(arenas, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    tensors = {f"var/{i}": rng.standard_normal((i, 5)).astype(np.float16 if i % 2 else np.float32) for i in range(6)}
    save_file(tensors, tmp_path / "w.safetensors")
    device = HostDevice()
    arena = Arena(device, read_header(tmp_path / "w.safetensors"))  # type: ignore[arg-type]
    assert [size for _, size in device.asked("allocate")] == [arena.size]
    assert sum(size for _, size in device.asked("pin")) == 2 * chunk
    for name, tensor in tensors.items():
        block = device.block(arena.addresses[name], max(tensor.nbytes, 1) if tensor.size else 0)
        assert block is not None
        start = arena.addresses[name] - block.address
        assert arena.addresses[name] % 256 == 0
        assert block.raw[start : start + tensor.nbytes].tobytes() == tensor.tobytes()
    assert {b.kind for b in device.blocks.values()} == {"device"}, "staging is given back"
    arena.free()
    assert not device.blocks


def test_places_do_not_overlap(aligned: Path) -> None:
    stored = read_header(aligned / "weights.safetensors")
    starts, size = place(stored)
    spans = sorted((start, start + stored[name].size) for name, start in starts.items())
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    assert spans[-1][1] <= size


def header(path: Path, text: bytes, data: bytes = b"\0" * 16) -> Path:
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(**changed: object) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changed}}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"{",
        b"{}x",
        entry(dtype="F8"),
        entry(shape=[3]),
        entry(shape=[-4]),
        entry(shape=[-1, -4]),
        entry(shape=[4.0]),
        entry(shape="4"),
        entry(data_offsets=[0, 20]),
        entry(data_offsets=[8, 24]),
        entry(data_offsets=[16, 0]),
        entry(data_offsets=[-16, 0]),
        entry(data_offsets=[0]),
        b'{"w": 3}',
        b'{"w": {}}',
    ],
)
def test_headers_that_are_none(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(BundleError, match=r"w\.safetensors is no safetensors file"):
        read_header(header(tmp_path / "w.safetensors", text))


@pytest.mark.parametrize("length", [0, 1, 2**40, 2**63])
def test_headers_of_no_length(tmp_path: Path, length: int) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(BundleError, match="its header has"):
        read_header(path)


def test_weights_that_the_manifest_does_not_describe(aligned: Path) -> None:
    bundle = open_bundle(aligned)
    with pytest.raises(BundleError, match="read 'var/none', which is none of the manifest's weights"):
        find_weights(bundle, ["var/none"])
    assert set(find_weights(bundle, bundle.manifest.weights)) == set(bundle.manifest.weights)
    other = aligned_with_another_shape(bundle.folder)
    bundle.manifest.weights["var/head.weight"] = other  # type: ignore[index]
    with pytest.raises(BundleError, match=r"manifest says float32 \[3, 3\], the file holds float32 \[11, 32\]"):
        find_weights(bundle, ["var/head.weight"])


def aligned_with_another_shape(folder: Path) -> object:
    import dataclasses

    weight = open_bundle(folder).manifest.weights["var/head.weight"]
    return dataclasses.replace(weight, shape=(3, 3))
