"""ScatterRestore's names: what the torch operator, the ONNX node, the function body and a plugin agree on.

``ScatterRestore(kept, index, cache, residual, row_matrix, column_matrix) -> result`` ends a sub-layer whose tokens were
pruned (FastVAR): pruned tokens take the sub-layer's update from an earlier scale, kept tokens their own.

============= ============== ============ ==========================================================================
input         shape          dtype        what
============= ============== ============ ==========================================================================
kept          (R, m, C)      as cache     the sub-layer's update of the kept tokens, 1 <= m <= h * w
index         (R, m)         int32        their raster positions in the grid, ascending and distinct in each row
cache         (R, hc*wc, C)  float        the same sub-layer's full update at the cache scale
residual      (R, h*w, C)    float        the residual stream of all tokens
row_matrix    (h, hc)        float32      area weights from the cache grid's rows to the grid's
column_matrix (w, wc)        float32      area weights from the cache grid's columns to the grid's
result        (R, h*w, C)    as residual  residual + (the resized cache, overwritten at index by kept)
============= ============== ============ ==========================================================================

Sums are taken in float32. The node has no attributes but the two by which TensorRT's parser finds a plugin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DOMAIN = "nextscale"
NAME = "ScatterRestore"
# The version of the domain in a model's opset imports.
DOMAIN_VERSION = 1
# Without them on the node TensorRT's parser inlines the function, even where a plugin of that name is registered.
PLUGIN_ATTRIBUTES = {"plugin_namespace": DOMAIN, "plugin_version": "1"}

RANKS = {"kept": 3, "index": 2, "cache": 3, "residual": 3, "row_matrix": 2, "column_matrix": 2}
INPUTS = tuple(RANKS)


class ScatterRestoreError(ValueError):
    """Inputs or a graph that ScatterRestore cannot take; says what was found and what is asked for."""


def check_shapes(shapes: Mapping[str, Sequence[Any]]) -> None:
    """Raise :class:`ScatterRestoreError` where the six inputs' shapes do not fit; symbolic lengths fit any other."""
    for name, rank in RANKS.items():
        if len(shapes[name]) != rank:
            raise ScatterRestoreError(f"{NAME} takes {name} with {rank} axes, not {tuple(shapes[name])}")
    rows, n, width = shapes["residual"]
    m = shapes["kept"][1]
    (h, hc), (w, wc) = shapes["row_matrix"], shapes["column_matrix"]
    asked = {
        "residual": (rows, h * w, width),
        "cache": (rows, hc * wc, width),
        "kept": (rows, m, width),
        "index": (rows, m),
    }
    for name, shape in asked.items():
        if any(_differ(a, b) for a, b in zip(shapes[name], shape, strict=True)):
            found = ", ".join(f"{other} {tuple(shapes[other])}" for other in INPUTS if other != name)
            raise ScatterRestoreError(f"{NAME} asks for {name} {shape} and got {tuple(shapes[name])}; with {found}")
    if not 1 <= m <= n:
        raise ScatterRestoreError(f"{NAME} was given {m} kept tokens for a grid of {h}x{w}; keep 1 to {n} of them")


def _differ(a: Any, b: Any) -> bool:
    """Whether two lengths are known to differ; comparing symbolic ones would tie an exported graph to one of them."""
    return isinstance(a, int) and isinstance(b, int) and a != b
