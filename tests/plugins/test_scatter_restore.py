"""What ScatterRestore means, and that the torch operator is that and refuses everything else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from support.restore_cases import Case, between_two_halves, cases, tolerance
from torch import Tensor
from torch.nn import functional as F

from nextscale.plugins.scatter_restore import scatter_restore, scatter_restore_reference
from nextscale.plugins.signature import INPUTS, ScatterRestoreError

CASE = Case(grid=(6, 5), cache_grid=(4, 3), kept=7)


def as_upstream(kept: Tensor, index: Tensor, cache: Tensor, residual: Tensor, grid: tuple[int, int], hc: int) -> Tensor:
    """FastVAR's restore as the sheet tells it: area resize as adaptive pooling, then one scatter."""
    picture = cache.float().unflatten(1, (hc, -1)).permute(0, 3, 1, 2)  # (R, C, hc, wc)
    area = F.adaptive_avg_pool2d(picture, grid).flatten(2).transpose(1, 2)  # (R, h * w, C)
    restored = area.scatter(1, index.long().unsqueeze(-1).expand_as(kept), kept.float())
    return (residual.float() + restored).to(residual.dtype)


@settings(deadline=None, max_examples=100)
@given(cases())
def test_reference_is_adaptive_pooling_then_scatter(case: Case) -> None:
    kept, index, cache, residual, rows, columns = case.inputs()
    expected = as_upstream(kept, index, cache, residual, case.grid, case.cache_grid[0])
    found = scatter_restore_reference(kept, index, cache, residual, rows, columns)
    assert found.dtype == residual.dtype
    torch.testing.assert_close(found, expected, **tolerance(residual.dtype))


@settings(deadline=None, max_examples=100)
@given(cases())
def test_operator_is_the_reference(case: Case) -> None:
    inputs = case.inputs()
    untouched = [tensor.clone() for tensor in inputs]
    assert torch.equal(scatter_restore(*inputs), scatter_restore_reference(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(inputs, untouched, strict=True))


def test_kept_tokens_take_their_own_update_and_nothing_of_the_cache() -> None:
    kept, index, cache, residual, rows, columns = CASE.inputs()
    at = index.long().unsqueeze(-1).expand_as(kept)
    result = scatter_restore(kept, index, cache * float("inf"), residual, rows, columns)
    assert torch.equal(result.gather(1, at), residual.gather(1, at) + kept)
    assert result.isfinite().all(-1).sum(1).tolist() == [CASE.kept] * CASE.rows


def test_sums_are_taken_in_float32() -> None:
    inputs, pruned = between_two_halves()
    assert (scatter_restore(*inputs)[pruned] == 2050).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_operator_is_well_formed_for_torch(dtype: torch.dtype) -> None:
    inputs = Case((6, 5), (4, 3), kept=7, dtypes=(dtype, torch.float32)).inputs()
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    assert set(torch.library.opcheck(torch.ops.nextscale.scatter_restore, inputs, test_utils=tests).values()) == {
        "SUCCESS"
    }


def test_operator_takes_inputs_that_are_not_contiguous() -> None:
    inputs = CASE.inputs()
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in inputs]
    assert not any(t.is_contiguous() for t in strided)
    result = scatter_restore(*strided)  # type: ignore[arg-type]
    assert result.is_contiguous()
    torch.testing.assert_close(result, scatter_restore(*inputs))


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("residual", lambda t: t[:, 1:], r"asks for residual \(2, 30, 8\) and got \(2, 29, 8\)"),
        ("residual", lambda t: t[0], r"residual with 3 axes, not \(30, 8\)"),
        ("residual", lambda t: t.long(), "a float residual"),
        ("cache", lambda t: t[:, 1:], r"asks for cache \(2, 12, 8\) and got \(2, 11, 8\)"),
        ("cache", lambda t: t[:1], r"asks for cache \(2, 12, 8\) and got \(1, 12, 8\)"),
        ("cache", lambda t: t.half(), "kept and cache of one float dtype"),
        ("kept", lambda t: t[..., :-1], r"asks for kept \(2, 7, 8\) and got \(2, 7, 7\)"),
        ("kept", lambda t: t[:, 1:], r"asks for index \(2, 6\) and got \(2, 7\)"),
        ("index", lambda t: t[:1], r"asks for index \(2, 7\) and got \(1, 7\)"),
        ("index", lambda t: t.long(), "int32 index, not torch.int64"),
        ("row_matrix", lambda t: t.T, "asks for residual"),
        ("row_matrix", lambda t: t.half(), "float32, not torch.float16"),
        ("column_matrix", lambda t: t.double(), "float32, not torch.float32 and torch.float64"),
        ("column_matrix", lambda t: t[None], "column_matrix with 2 axes"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_refuses_what_does_not_fit(name: str, change: object, message: str, device: str) -> None:
    inputs = dict(zip(INPUTS, CASE.inputs(), strict=True))
    inputs[name] = change(inputs[name])  # type: ignore[operator]
    with pytest.raises(ScatterRestoreError, match=message):
        scatter_restore(**{key: tensor.to(device) for key, tensor in inputs.items()})


@pytest.mark.parametrize("kept", [0, 31])
def test_refuses_keep_counts_outside_the_grid(kept: int) -> None:
    _, _, cache, residual, rows, columns = CASE.inputs()
    index = torch.zeros(2, kept, dtype=torch.int32)
    with pytest.raises(ScatterRestoreError, match=f"{kept} kept tokens for a grid of 6x5; keep 1 to 30"):
        scatter_restore(torch.zeros(2, kept, 8), index, cache, residual, rows, columns)
