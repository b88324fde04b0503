"""Safetensors files one tensor at a time: what they hold before it is read, and writing what is made while writing.

The format: eight bytes of header length, a JSON header of dtypes, shapes and offsets, then the values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from nextscale.export.lazy import Entry, Lazy

# In the order in which the format's own library lays tensors out: by alignment first, so that all are aligned.
DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def header_of(path: Path) -> tuple[int, dict[str, Any]]:
    """Length in bytes and content of a safetensors file's header: dtype, shape and offsets of every tensor."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    return length, header


def entries(path: Path) -> dict[str, Lazy]:
    """Every tensor of a file, not read.

    Raises the library's ``SafetensorError`` for a file whose header does not fit its length, ``ValueError`` for a
    dtype that no checkpoint has.
    """
    with safe_open(path, framework="np"):  # the library checks that offsets follow each other and fill the file
        length, header = header_of(path)
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} has the dtype {entry['dtype']}")
        start = 8 + length + entry["data_offsets"][0]
        found[name] = Lazy.in_file(path, start, entry["shape"], DTYPES[entry["dtype"]])
    return found


def write(path: Path, tensors: Mapping[str, Entry]) -> None:
    """Writes a file, one tensor in memory at a time; it is on the disk when this returns.

    The layout is the library's: by dtype, then by name. A failing disk is the ``OSError`` that it raises.
    """
    order = sorted(tensors, key=lambda name: (list(NAMES).index(tensors[name].dtype), name))
    header, end = {}, 0
    for name in order:
        entry = tensors[name]
        start, end = end, end + entry.nbytes
        header[name] = {"dtype": NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            _put(file, Lazy.of(tensors[name]).read())
        file.flush()
        os.fsync(file.fileno())


def _put(file: IO[bytes], tensor: Tensor) -> None:
    """In a function of its own, or one tensor would still be held while the next is made."""
    file.write(tensor.detach().flatten().view(torch.uint8).numpy().data)
