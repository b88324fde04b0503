"""Tensors that are made when they are asked for, so that a checkpoint is never in memory as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nextscale.plan.errors import InputError


@dataclass(frozen=True)
class Lazy:
    """A tensor whose shape and dtype are known before its values. Each :meth:`read` makes it anew.

    It has as much of a tensor's face as the reading of sizes needs.
    """

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, entry: Lazy | Tensor) -> Lazy:
        """One that is lazy already as it is; a tensor in memory as one that gives itself."""
        return entry if isinstance(entry, Lazy) else cls(entry.shape, entry.dtype, lambda: entry)

    @classmethod
    def in_file(
        cls, path: Path, offset: int, shape: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None = None
    ) -> Lazy:
        """Values that lie at a byte of a file, row-major or with strides (0 or above); read into memory of their own.

        Reading raises :class:`InputError` where the file is gone or ends before them.
        """
        size = torch.Size(shape)
        span = size.numel() if stride is None else extent(size, stride)

        def make() -> Tensor:
            values = _bytes(path, offset, span * dtype.itemsize).view(dtype)
            return values.reshape(size) if stride is None else values.as_strided(size, stride).contiguous()

        return cls(size, dtype, make)

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Of the values, row-major."""
        return self.numel() * self.dtype.itemsize

    def numel(self) -> int:
        """Values."""
        return math.prod(self.shape)

    def read(self) -> Tensor:
        """The tensor, contiguous."""
        tensor = self.make()
        assert (tensor.shape, tensor.dtype) == (self.shape, self.dtype)
        return tensor.contiguous()


Entry = Lazy | Tensor


def extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """How many values of a storage a strided tensor spans, from its first to its last."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if all(shape) else 0


def _bytes(path: Path, offset: int, length: int) -> Tensor:
    """(length) uint8. Plain reads, for the pages of a mapping would stay in the process."""
    values = torch.empty(length, dtype=torch.uint8)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            if file.readinto(values.numpy().data) != length:
                raise EOFError("it ends before its tensors do")
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read as a checkpoint ({reason}): fetch the file again") from error
    return values
