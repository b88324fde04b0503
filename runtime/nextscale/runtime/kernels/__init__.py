"""CUDA kernels of the chain between graphs, which no model's graph holds."""

from __future__ import annotations
