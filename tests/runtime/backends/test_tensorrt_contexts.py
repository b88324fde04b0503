"""What TensorRT for RTX compiles for a card is kept for the next process."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_compiled_kernels_are_kept_for_the_next_start(gpu: Any, tmp_path: Path) -> None:
    gpu.build("tensorrt-rtx", (1,))
    pipeline, folder = gpu.open("tensorrt-rtx"), tmp_path / "cache/nextscale/tensorrt-rtx"
    assert not folder.exists()  # every context is made first, and a first launch comes before it
    pipeline.generate([0], seed=0)
    (kept,) = folder.iterdir()
    assert kept.read_bytes().startswith(b"begin")
    kept.write_bytes(b"of another card")
    gpu.open("tensorrt-rtx").generate([0], seed=0)
