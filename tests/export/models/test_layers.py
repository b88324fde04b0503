"""Layers that the families share."""

from __future__ import annotations

import torch

from nextscale.export.models.layers import RMSNorm


def test_norms_are_float32_whatever_they_are_given() -> None:
    norm = RMSNorm(8)
    x = torch.full((1, 8), 300.0, dtype=torch.float16)  # squares beyond float16
    torch.testing.assert_close(norm(x), torch.ones(1, 8))
    assert norm(x).dtype == torch.float32
