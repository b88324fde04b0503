"""The lengths that the plugin's definition is checked with."""

from __future__ import annotations

SHAPES = {
    "kept": (2, 7, 8),
    "index": (2, 7),
    "cache": (2, 12, 8),
    "residual": (2, 30, 8),
    "row_matrix": (6, 4),
    "column_matrix": (5, 3),
}
