"""ScatterRestore: its meaning, its torch operator and its ONNX function."""

from __future__ import annotations
