"""The weights of all graphs, once, in one block of a device: read from safetensors files by their headers.

The file is mapped and goes through two small pinned buffers by turns, one being filled while the other is copied: the
host never holds a second copy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from nextscale.runtime.backends.blocks import Block
from nextscale.runtime.backends.cuda import Device
from nextscale.runtime.backends.device import host_array
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import BackendError, BundleError
from nextscale.runtime.manifest import ITEM_SIZES

ALIGNMENT = 256  # TensorRT asks for it
CHUNK = 16 * 2**20  # bytes of each staging buffer
_LARGEST_HEADER = 100 * 10**6  # as safetensors' own readers have it
_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I8": "int8",
    "U8": "uint8",
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: where its bytes are."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def find_weights(bundle: Bundle, names: Iterable[str]) -> dict[str, Stored]:
    """The tensors of those names, from the files that the manifest lists for them.

    Raises :class:`~nextscale.runtime.errors.BundleError` where a file does not hold what the manifest says.
    """
    headers: dict[str, dict[str, Stored]] = {}
    found = {}
    for name in names:
        weight = bundle.manifest.weights.get(name)
        if weight is None:
            raise BundleError(f"{bundle.folder}: its graphs read {name!r}, which is none of the manifest's weights")
        if weight.file not in headers:
            headers[weight.file] = read_header(bundle.path(weight.file))
        stored = headers[weight.file].get(name)
        if stored is None or (stored.dtype, stored.shape) != (weight.dtype, weight.shape):
            is_there = "nothing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
            raise BundleError(
                f"{bundle.path(weight.file)}: for {name!r} the manifest says {weight.dtype} {list(weight.shape)}, the "
                f"file holds {is_there}; export the bundle again"
            )
        found[name] = stored
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """What a safetensors file holds; every tensor checked to lie inside of it."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        whole = path.stat().st_size
        if not 2 <= length <= min(whole - 8, _LARGEST_HEADER):
            raise BundleError(f"{path} is no safetensors file: its header has {length:,} of {whole:,} bytes")
        try:
            entries: dict[str, Any] = json.loads(stream.read(length))
            entries.pop("__metadata__", None)
            return {name: _stored(path, entry, 8 + length, whole) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path} is no safetensors file that can be read: {error}") from error


def _stored(path: Path, entry: Mapping[str, Any], data: int, whole: int) -> Stored:
    dtype, shape, (start, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
        raise ValueError(f"shape {list(shape)} at bytes {start!r} to {end!r}")
    if not start <= end <= whole - data or end - start != prod(shape) * ITEM_SIZES[dtype]:
        raise ValueError(f"{dtype} {list(shape)} at bytes {start} to {end} of its {whole - data}")
    return Stored(path, dtype, shape, data + start, end - start)


class Arena:
    """Weights on a device; ``addresses`` by name. Filled when it is made."""

    def __init__(self, device: Device, weights: Mapping[str, Stored]) -> None:
        starts, self.size = place(weights)
        self.weights = dict(weights)
        self._block: Block = device.allocate(self.size)
        self.addresses = {name: self._block.address + start for name, start in starts.items()}
        _fill(device, [(self.addresses[name], stored) for name, stored in weights.items()])

    def free(self) -> None:
        """Give the memory back."""
        self._block.free()


def place(weights: Mapping[str, Stored]) -> tuple[dict[str, int], int]:
    """The first byte of every tensor in an arena, aligned, and the arena's size."""
    starts, end = {}, 0
    for name, stored in weights.items():
        starts[name] = end
        end += -(-stored.size // ALIGNMENT) * ALIGNMENT
    return starts, end


def _fill(device: Device, targets: Iterable[tuple[int, Stored]]) -> None:
    """Copy every tensor to its address."""
    turns = [(device.stream(), device.pin(CHUNK)) for _ in range(2)]
    staging = [host_array(block) for _, block in turns]
    turn = 0
    for address, piece in _pieces(targets):
        stream, block = turns[turn]
        stream.wait()  # for what this buffer was last used for
        staging[turn][: piece.size] = piece
        stream.upload(address, block.address, piece.size)
        turn = 1 - turn
    for stream, _ in turns:
        stream.wait()


def _pieces(targets: Iterable[tuple[int, Stored]]) -> Iterator[tuple[int, np.ndarray[Any, np.dtype[np.uint8]]]]:
    """Target address and mapped bytes, a staging buffer's at most."""
    mapped: dict[Path, np.ndarray[Any, np.dtype[np.uint8]]] = {}
    for address, stored in targets:
        if stored.path not in mapped:
            try:
                mapped[stored.path] = np.memmap(stored.path, np.uint8, mode="r")
            except (OSError, ValueError) as error:
                raise BackendError(f"{stored.path} cannot be mapped: {error}") from error
        for start in range(0, stored.size, CHUNK):
            size = min(CHUNK, stored.size - start)
            first = stored.start + start
            yield address + start, mapped[stored.path][first : first + size]
