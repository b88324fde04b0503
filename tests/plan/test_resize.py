"""The one-axis matrices against PyTorch's own resizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.errors import InputError
from nextscale.plan.resize import area_matrix, bicubic_matrix, bilinear_matrix, resize_matrix

sides = st.integers(1, 40)


def by_matrices(mode: str, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    height = torch.from_numpy(resize_matrix(mode, x.shape[-2], size[0]))
    width = torch.from_numpy(resize_matrix(mode, x.shape[-1], size[1]))
    return height @ x @ width.T


@pytest.mark.parametrize("mode", ["area", "bicubic", "bilinear"])
@given(h=sides, w=sides, out_h=sides, out_w=sides, seed=st.integers(0, 99))
def test_equal_to_pytorch(mode: str, h: int, w: int, out_h: int, out_w: int, seed: int) -> None:
    x = torch.randn(1, 2, h, w, generator=torch.Generator().manual_seed(seed))
    options = {} if mode == "area" else {"align_corners": False}
    expected = F.interpolate(x, size=(out_h, out_w), mode=mode, **options)
    torch.testing.assert_close(by_matrices(mode, x, (out_h, out_w)), expected, atol=2e-5, rtol=1e-5)


@given(n_in=sides, n_out=sides)
def test_area_bins_are_those_of_adaptive_pooling(n_in: int, n_out: int) -> None:
    expected = F.adaptive_avg_pool1d(torch.eye(n_in)[:, None], n_out)[:, 0].T
    np.testing.assert_allclose(area_matrix(n_in, n_out), expected.numpy(), rtol=1e-6)


@given(n_in=sides, n_out=sides)
def test_rows_sum_to_one_and_are_float32(n_in: int, n_out: int) -> None:
    for make in (area_matrix, bicubic_matrix, bilinear_matrix):
        matrix = make(n_in, n_out)
        assert matrix.shape == (n_out, n_in)
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("make", [area_matrix, bicubic_matrix, bilinear_matrix])
def test_same_size_is_exactly_the_identity(make: object) -> None:
    assert callable(make)
    np.testing.assert_array_equal(make(13, 13), np.eye(13, dtype=np.float32))


def test_the_ramp_of_the_fact_sheet() -> None:
    """24 samples enlarged to 32 by area: 0, 0.5, 1.5, 2, 3, 3.5, 4.5, 5."""
    ramp = area_matrix(24, 32) @ np.arange(24, dtype=np.float32)
    np.testing.assert_allclose(ramp[:8], [0, 0.5, 1.5, 2, 3, 3.5, 4.5, 5])


def test_errors_name_what_was_asked() -> None:
    with pytest.raises(InputError, match="0 samples to 3"):
        area_matrix(0, 3)
    with pytest.raises(InputError, match="'lanczos' is unknown; known are area, bicubic, bilinear"):
        resize_matrix("lanczos", 2, 3)
