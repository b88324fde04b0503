"""HART's rotary positions against the sheet's section 3.3, element by element."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nextscale.export.models.contract import Rotation
from nextscale.export.models.mixed_rope import frequencies, grid_rotation, places, text_rotation, turn
from nextscale.plan.types import Grid

CPU = torch.device("cpu")


def queries(rows: int, tokens: int, head_dim: int) -> Tensor:
    """(R, n, 3 heads, hd)."""
    return torch.randn(rows, tokens, 3, head_dim, generator=torch.Generator().manual_seed(head_dim))


def text(head_dim: int, tokens: int, position: Tensor) -> Rotation:
    return text_rotation(tokens, position, frequencies(head_dim, 2, CPU))


def grid(head_dim: int, own: Grid, of: Grid, position: Tensor) -> Rotation:
    return grid_rotation(own, of, position, frequencies(head_dim, 4, CPU))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([4, 8, 64]), st.integers(1, 6), st.lists(st.integers(0, 5), min_size=1, max_size=3))
def test_texts_turn_as_complex_numbers(head_dim: int, tokens: int, last: list[int]) -> None:
    q = queries(len(last), tokens, head_dim)
    found = turn(q, text(head_dim, tokens, torch.tensor(last).float()))
    for row, end in enumerate(last):
        for i in range(tokens):
            pairs = torch.complex(*q[row, i].double().chunk(2, dim=-1))
            angle = min(i, end) * 10000.0 ** (-2 * torch.arange(head_dim // 2).double() / head_dim)
            turned = pairs * torch.polar(torch.ones_like(angle), angle)
            wanted = torch.cat((turned.real, turned.imag), dim=-1)
            torch.testing.assert_close(found[row, i].double(), wanted, atol=2e-6, rtol=0)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from([4, 8, 16, 64]),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.lists(st.integers(0, 299), min_size=1, max_size=3),
)
def test_grids_mix_their_axes(head_dim: int, own: Grid, of: Grid, last: list[int]) -> None:
    (h, w), half, quarter = own, head_dim // 2, head_dim // 4
    q = queries(len(last), h * w, head_dim)
    found = turn(q, grid(head_dim, own, of, torch.tensor(last).float()))
    for row, end in enumerate(last):
        for i in range(h * w):
            y, x = (i // w) / h * of[0] + end, (i % w) / w * of[1] + end
            for j in range(half):
                inverse = 10000 ** (-4 * (j % quarter) / head_dim)
                first, second = q[row, i, :, j].double(), q[row, i, :, j + half].double()
                ay, ax = y * inverse, x * inverse
                turned = first * math.cos(ay) - second * math.sin(ay), second * math.cos(ax) + first * math.sin(ax)
                for place, wanted in zip((j, j + half), turned, strict=True):
                    # float32 knows an angle near 300 to 2e-5
                    torch.testing.assert_close(found[row, i, :, place].double(), wanted, atol=2e-4, rtol=0)


def test_axes_that_differ_are_no_rotation() -> None:
    q = queries(1, 9, 8)
    lengths = turn(q, grid(8, (3, 3), (3, 3), torch.zeros(1))).norm(dim=-1) / q.norm(dim=-1)
    same = torch.tensor([0, 4, 8])  # y equals x
    torch.testing.assert_close(lengths[0, same], torch.ones(3, 3))
    assert float((lengths[0, [1, 2, 3, 5, 6, 7]] - 1).abs().max()) > 0.05


def test_every_row_starts_where_its_text_ends() -> None:
    """A text's last position moves both places by as much; the unconditional row's is 0."""
    rows = grid(8, (2, 2), (2, 2), torch.tensor([1.0, 0.0]))
    wider = grid(8, (3, 3), (3, 3), torch.zeros(1))
    for both, one in zip(rows, wider, strict=True):
        torch.testing.assert_close(both[0], one[0, [4, 5, 7, 8]])
        torch.testing.assert_close(both[1], one[0, [0, 1, 3, 4]])


def test_places_are_those_of_the_other_grid_in_upstreams_order() -> None:
    """Divided, then multiplied: 2 / 3 * 64 is not 2 * 64 / 3 in float32 everywhere."""
    found = places((27, 36), (64, 48), CPU)
    y, x = torch.arange(27), torch.arange(36)
    assert torch.equal(found[:, 0].reshape(27, 36), (y / 27 * 64)[:, None].expand(27, 36))
    assert torch.equal(found[:, 1].reshape(27, 36), (x / 36 * 48).expand(27, 36))


@pytest.mark.parametrize("head_dim", [4, 64])
def test_tables_have_a_row_for_each_rows_tokens(head_dim: int) -> None:
    position = torch.tensor([3.0, 0.0])
    assert [tuple(t.shape) for t in text(head_dim, 5, position)] == [(2, 5, 1, head_dim)] * 2
    assert [tuple(t.shape) for t in grid(head_dim, (2, 3), (4, 4), position)] == [(2, 6, 1, head_dim)] * 2
    half = turn(queries(2, 5, head_dim).to(torch.bfloat16), text(head_dim, 5, position))
    assert half.dtype == torch.float32
