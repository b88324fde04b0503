"""TensorRT in its two flavours, ``tensorrt`` and ``tensorrt-rtx``: building targets, and executing them."""

from __future__ import annotations
