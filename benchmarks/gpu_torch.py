"""What bench_gpu.py asks of PyTorch on a device: its flash attention, what it compiled, and what memory it takes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from nextscale.compare.gpu_check.pictures import without_torch


def flash(device: str) -> AbstractContextManager[object]:
    """On a GPU flash attention, and for the float32 that it does not take (a text's pooling) the memory-efficient."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    return sdpa_kernel(kernels, set_priority=True) if device == "cuda" else nullcontext()


def allocated(run: Callable[[], object], device: str) -> int | None:
    """Bytes that PyTorch has allocated on the GPU at the most of a run, beside those before it; None on a CPU."""
    if device != "cuda":
        run()
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return int(torch.cuda.max_memory_allocated()) - before


def forget_compiled() -> None:
    """Drops what was compiled, and the memory behind it."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free() -> int | None:
    """Bytes of the GPU that nobody but PyTorch holds; None without one."""
    return without_torch(int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None)
