"""What bench_gpu.py asks of PyTorch on a device: its flash attention, and what memory it takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from nextscale.compare.gpu_check.pictures import without_torch


def flash(device: str) -> AbstractContextManager[object]:
    """Flash attention or an error, on a GPU."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(SDPBackend.FLASH_ATTENTION) if device == "cuda" else nullcontext()


def allocated(run: Callable[[], object]) -> int:
    """Bytes that PyTorch has allocated on the GPU at the most of a run, beside those before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return int(torch.cuda.max_memory_allocated()) - before


def free() -> int | None:
    """Bytes of the GPU that nobody but PyTorch holds; None without one."""
    return without_torch(int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None)
