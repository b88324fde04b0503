"""Rotary positions on a grid: places, and turning neighbours (the sheet, 2.4)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.export.models.grid_rope import grid_rotation, places, turn_pairs


@pytest.mark.parametrize(
    ("n", "wanted"),
    [
        (6, [0, 11, 21, 32, 43, 53]),
        (20, [0, 3, 6, 10, 13, 16, 19, 22, 26, 29]),
        (24, [0, 3, 5, 8, 11, 13, 16]),
        (64, [0, 1, 2, 3]),
    ],
)
def test_places_are_the_sheet_s(n: int, wanted: list[int]) -> None:
    assert places(n, 64)[: len(wanted)].tolist() == wanted


def test_places_halfway_go_to_the_even_one() -> None:
    assert places(16, 72)[:4].tolist() == [0, 4, 9, 14]  # 0, 4.5, 9, 13.5


@settings(deadline=None, max_examples=30)
@given(h=st.integers(1, 9), w=st.integers(1, 9), quarter=st.integers(1, 8), seed=st.integers(0, 99))
def test_rotation_turns_neighbours_as_complex_numbers(h: int, w: int, quarter: int, seed: int) -> None:
    """Products of rotated queries and keys are those of upstream's interleaved pairs."""
    head_dim, reference = 4 * quarter, (16, 24)
    q, k = torch.randn(2, 2, h * w, 3, head_dim, generator=torch.Generator().manual_seed(seed)).unbind(0)
    rotation = grid_rotation((h, w), reference, head_dim)
    assert rotation.cos.shape == (h * w, 1, head_dim // 2)
    angles = torch.empty(h * w, head_dim // 2, dtype=torch.float64)
    for token in range(h * w):
        y, x = (float(round(i * full / n)) for i, n, full in zip(divmod(token, w), (h, w), reference, strict=True))
        for j in range(quarter):
            step = 10000 ** (-2 * j / (head_dim // 2))
            angles[token, j], angles[token, quarter + j] = y * step, x * step
    turned = [
        torch.view_as_complex(t.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
        for t in (q, k)
    ]
    wanted = torch.einsum("rqhd,rkhd->rqkh", turned[0], turned[1].conj()).real
    got = torch.einsum("rqhd,rkhd->rqkh", turn_pairs(q, rotation), turn_pairs(k, rotation))
    torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)
    first, second = turn_pairs(q, rotation).double().chunk(2, dim=-1)
    torch.testing.assert_close(torch.complex(first, second), turned[0], rtol=1e-4, atol=1e-4)
