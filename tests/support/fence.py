"""Memory that ends at a page nobody may touch, so that an access behind it ends the process instead of going unseen."""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor


def fenced(tensor: Tensor, skew: int = 0) -> Tensor:
    """A copy whose last value is ``skew`` values before the fence.

    Its address is a multiple of 16 where its length in bytes and ``skew`` values are.
    """
    size, item = tensor.numel() * tensor.element_size(), tensor.element_size()
    pages = -(-(size + skew * item) // mmap.PAGESIZE)
    space = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = pages * mmap.PAGESIZE - size - skew * item
    copy = torch.frombuffer(space, dtype=tensor.dtype, count=tensor.numel(), offset=start).view(tensor.shape)
    copy.copy_(tensor)
    if sys.platform != "win32":
        fence = copy.data_ptr() + size + skew * item
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), mmap.PAGESIZE, 0) == 0
    return copy
