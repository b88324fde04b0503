"""PyTorch's own files one tensor at a time: what they hold before it is read. No pickle is ever executed."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nextscale.export.lazy import Lazy, extent
from nextscale.export.trace import without_weights


def load(path: Path) -> tuple[object, Callable[[Tensor], Lazy]]:
    """What a file holds, with stand-ins for its tensors, and the way from a stand-in to the tensor.

    Where the file is of the old form, or of another byte order, its tensors are read at once and stand for themselves.
    Raises what ``torch.load`` raises, and ``ValueError`` for tensors that are not where the file says.
    """
    records = _records(path) if zipfile.is_zipfile(path) else None
    if records is None:
        return torch.load(path, map_location="cpu", weights_only=True), Lazy.of
    with without_weights():  # storages that know where in the file they begin
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    return loaded, lambda tensor: _in_record(path, tensor, records)


def _records(path: Path) -> dict[int, int] | None:
    """Where the records of a zip file begin, and how long they are; None where their bytes are not as in memory."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for record in archive.infolist():
            if record.filename.endswith("/byteorder") and archive.read(record) != sys.byteorder.encode():
                return None
            if record.compress_type == zipfile.ZIP_STORED:
                file.seek(record.header_offset + 26)  # lengths of the name and of what comes before the record
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                found[record.header_offset + 30 + name + extra] = record.file_size
    return found


def _in_record(path: Path, tensor: Tensor, records: dict[int, int]) -> Lazy:
    """Any view of a storage, of which only what it spans is read."""
    if not tensor.numel():
        return Lazy.of(torch.empty(tensor.shape, dtype=tensor.dtype))
    record: int = getattr(tensor.untyped_storage(), "_checkpoint_offset", -1)
    start = int(tensor.storage_offset()) * tensor.element_size()
    length = extent(tensor.shape, tensor.stride()) * tensor.element_size()
    if start + length > records.get(record, -1):
        raise ValueError("a tensor lies outside the file's records")
    return Lazy.in_file(path, record + start, tensor.shape, tensor.dtype, tensor.stride())
