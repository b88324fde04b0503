"""The CUDA kernel of ScatterRestore on the host: the same source, its threads one by one, against the reference."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from importlib import resources
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fence import fenced
from support.host_kernel import HostKernel, compiler
from support.restore_cases import Case, Inputs, between_two_halves, cases, tolerance
from torch import Tensor

from nextscale.plugins import kernel
from nextscale.plugins.scatter_restore import scatter_restore_reference
from nextscale.plugins.signature import INPUTS, ScatterRestoreError

NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
Dtypes = tuple[torch.dtype, torch.dtype]
ALL = tuple(product(NAMES, NAMES))
GUARD = 16  # values before the result, which must stay as they are
# Below, at and beyond one access of a warp, two of them, and what is left over; some of no whole 16 bytes.
WIDTHS = (1, 3, 8, 20, 64, 100, 128, 132, 256, 264, 512, 520, 1100)
Kernels = Callable[[Dtypes], HostKernel]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    folder, ready = tmp_path_factory.mktemp("scatter_restore"), dict[Dtypes, HostKernel]()

    def compiled(dtypes: Dtypes) -> HostKernel:
        if dtypes not in ready:
            part, full = (NAMES[dtype] for dtype in dtypes)
            options = kernel.options(part, full)
            ready[dtypes] = HostKernel(kernel.source(), kernel.KERNEL, folder / f"{part}-{full}", options)
        return ready[dtypes]

    return compiled


def run(kernels: Kernels, inputs: Inputs, skew: int = 0) -> Tensor:
    """The kernel's result; what lies before it is checked to be untouched, as are the inputs.

    With ``skew`` 0 addresses are multiples of 16 where widths are.
    """
    given = {name: fenced(t, skew) for name, t in zip(INPUTS, inputs, strict=True)}
    residual = given["residual"]
    space = fenced(torch.full((residual.numel() + GUARD,), torch.nan, dtype=residual.dtype), skew)
    result = space[GUARD:].view(residual.shape)
    addresses = {name: t.data_ptr() for name, t in given.items()} | {"result": result.data_ptr()}
    kernels((given["kept"].dtype, residual.dtype))(kernel.launch({n: t.shape for n, t in given.items()}, addresses))
    assert space[:GUARD].isnan().all()
    assert all(torch.equal(given[n], t) for n, t in zip(INPUTS, inputs, strict=True))
    return result


def close(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else tolerance(dtype)


@st.composite
def wide_cases(draw: st.DrawFn) -> Case:
    return dataclasses.replace(draw(cases(ALL)), width=draw(st.sampled_from(WIDTHS)))


@settings(deadline=None, max_examples=200)
@given(case=wide_cases(), skew=st.sampled_from((0, 0, 1, 8)))
def test_kernel_is_the_reference(kernels: Kernels, case: Case, skew: int) -> None:
    inputs = case.inputs()
    expected = scatter_restore_reference(*inputs)
    torch.testing.assert_close(run(kernels, inputs, skew), expected, **close(expected.dtype))


@settings(deadline=None, max_examples=50)
@given(case=wide_cases())
def test_wide_accesses_and_single_values_compute_the_same(kernels: Kernels, case: Case) -> None:
    """The same bits, whether 16 bytes move at once or one value."""
    inputs = case.inputs()
    assert torch.equal(run(kernels, inputs, skew=0), run(kernels, inputs, skew=1))


@settings(deadline=None, max_examples=50)
@given(case=wide_cases(), density=st.sampled_from((0.0, 0.2, 1.0)))
def test_any_matrices(kernels: Kernels, case: Case, density: float) -> None:
    """Dense ones, negative weights, zeros between weights, lines of nothing but zeros."""
    random = torch.Generator().manual_seed(case.seed)
    inputs = list(case.inputs())
    for i in (4, 5):
        weights = torch.randn(inputs[i].shape, generator=random)
        inputs[i] = weights * (torch.rand(weights.shape, generator=random) < density)
    expected = scatter_restore_reference(*inputs).double()
    magnitude = scatter_restore_reference(*(t.abs() if t.is_floating_point() else t for t in inputs)).double()
    error = (run(kernels, tuple(inputs)).double() - expected).abs()  # type: ignore[arg-type]
    unit = torch.finfo(inputs[3].dtype).eps
    assert (error <= 4 * unit * magnitude + 1e-12 + (unit > 1e-4) * 1e-7).all()


@pytest.mark.parametrize("dtypes", ALL, ids=lambda pair: "-".join(NAMES[dtype] for dtype in pair))
def test_kept_tokens_take_nothing_of_the_cache(kernels: Kernels, dtypes: Dtypes) -> None:
    kept, index, cache, residual, rows, columns = Case((6, 5), (4, 3), kept=7, width=32, dtypes=dtypes).inputs()
    at = index.long().unsqueeze(-1).expand_as(kept)
    result = run(kernels, (kept, index, torch.full_like(cache, torch.inf), residual, rows, columns))
    assert torch.equal(result.gather(1, at), (residual.gather(1, at).float() + kept.float()).to(residual.dtype))
    assert result.isfinite().all(-1).sum(1).tolist() == [7, 7]


def test_sums_are_taken_in_float32(kernels: Kernels) -> None:
    inputs, pruned = between_two_halves()
    assert (run(kernels, inputs)[pruned] == 2050).all()


def test_every_token_kept_and_one_kept(kernels: Kernels) -> None:
    for kept in (1, 30):
        inputs = Case((6, 5), (4, 3), kept=kept, width=16).inputs()
        torch.testing.assert_close(run(kernels, inputs), scatter_restore_reference(*inputs))


# --- what surrounds it -----------------------------------------------------------------------------------------------


SMALL = Case((6, 5), (4, 3), kept=7)


def shapes(case: Case = SMALL) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in zip(INPUTS, case.inputs(), strict=True)}


def test_geometry_gives_every_token_a_warp() -> None:
    grid, block, lengths = kernel.geometry(shapes())
    assert lengths == (2, 7, 8, 6, 4, 5, 3)
    assert block == (32, kernel.TOKENS, 1)
    assert grid == (8, 1, 1)  # 60 tokens by eights
    assert kernel.geometry(shapes(Case((4, 4), (2, 2), 1, rows=1)))[0] == (2, 1, 1)
    assert kernel.output_shape(shapes()) == (2, 30, 8)


def test_the_source_counts_lanes_and_tokens_alike() -> None:
    constants = dict(re.findall(r"constexpr int (\w+) = (\d+);", kernel.source()))
    assert (int(constants["LANES"]), int(constants["TOKENS"])) == (kernel.LANES, kernel.TOKENS)


def test_arguments_are_in_the_order_and_of_the_widths_of_the_source() -> None:
    addresses = {name: 16 * number for number, name in enumerate((*INPUTS, "result"), start=1)}
    arguments = kernel.launch(shapes(), addresses).arguments
    (parameters,) = re.findall(r"scatter_restore\(([^)]*)\)", kernel.source())
    names = [parameter.split()[-1].lstrip("*") for parameter in parameters.split(",")]
    assert names == [*INPUTS, "rows", "kept_tokens", "width", "h", "hc", "w", "wc", "result"]
    assert [int(argument) for argument in arguments] == [16, 32, 48, 64, 80, 96, 2, 7, 8, 6, 4, 5, 3, 112]
    assert [argument.nbytes for argument in arguments] == [8] * 6 + [4] * 7 + [8]


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("kept", (2, 7, 9), r"asks for kept \(2, 7, 8\) and got \(2, 7, 9\)"),
        ("index", (2, 7, 1), r"takes index with 2 axes, not \(2, 7, 1\)"),
        ("cache", (2, 11, 8), r"asks for cache \(2, 12, 8\) and got \(2, 11, 8\)"),
        ("residual", (2, 29, 8), r"asks for residual \(2, 30, 8\) and got \(2, 29, 8\)"),
    ],
)
def test_geometry_refuses_shapes_that_do_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ScatterRestoreError, match=message):
        kernel.geometry(shapes() | {name: shape})


def test_geometry_refuses_nothing_and_too_much() -> None:
    def with_rows(rows: int) -> dict[str, tuple[int, ...]]:
        return {name: shape if name.endswith("matrix") else (rows, *shape[1:]) for name, shape in shapes().items()}

    with pytest.raises(ScatterRestoreError, match=r"nothing to do: kept has shape \(0, 7, 8\)"):
        kernel.geometry(with_rows(0))
    with pytest.raises(ScatterRestoreError, match="counts tokens in 32 bits and was given 134217728 rows of 30"):
        kernel.geometry(with_rows(2**27))


def test_launch_refuses_missing_addresses_and_unknown_dtypes() -> None:
    with pytest.raises(ScatterRestoreError, match=r"the addresses of \['result'\]"):
        kernel.launch(shapes(), dict.fromkeys(INPUTS, 16))
    with pytest.raises(ScatterRestoreError, match="takes float32, float16, bfloat16, not float64"):
        kernel.options("float16", "float64")


def test_the_hash_is_of_source_architecture_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {kernel.source_hash()}
    for name, value in (
        ("ARCHITECTURE", "compute_90"),
        ("options", lambda part, full: ("-DPART=1",)),
        ("source", lambda: "another"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(kernel, name, value)
            found.add(kernel.source_hash())
    assert len(found) == 4
    assert all(re.fullmatch(r"[0-9a-f]{64}", each) for each in found)
    assert resources.files("nextscale.plugins").joinpath(kernel.FILE).is_file()


def test_without_a_compiler_these_tests_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AssertionError, match="needs a C\\+\\+ compiler: install g\\+\\+ or clang, or set CXX"):
        compiler()
