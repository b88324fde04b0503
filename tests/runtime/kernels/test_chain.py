"""The chain's kernels on the host, from the same source: noise bit for bit, and what is not finite."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.assemble import ARCHITECTURES, assemble
from support.host_kernel import HostKernel

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.nvrtc import compile_ptx
from nextscale.runtime.kernels import chain
from nextscale.runtime.noise import fill

GUARD = 5
NOT_FINITE = (np.nan, -np.nan, np.inf, -np.inf)
FINITE = (0.0, -0.0, 1e-45, 3.4028235e38, -3.4028235e38)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HostKernel]:
    folder = tmp_path_factory.mktemp("chain")
    return {name: HostKernel(chain.source(), name, folder / name) for name in chain.KERNELS}


def address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def drawn(kernel: HostKernel, keys: list[tuple[int, int]], count: int, step: int, stream: int, skew: int) -> Any:
    space = np.full(len(keys) * count + 2 * GUARD, 7, np.float32)
    start = GUARD - 1 + skew
    out = space[start : start + len(keys) * count]
    words = np.array(keys, np.uint64).view(np.int64)  # as the pipeline's buffer has them
    kernel(chain.uniforms(address(words), address(out), len(keys), count, step, stream))
    assert (space[:start] == 7).all()
    assert (space[start + out.size :] == 7).all()
    return out.reshape(len(keys), count)


words = st.integers(0, 2**63 - 1)


@settings(deadline=None, max_examples=150)
@given(
    keys=st.lists(st.tuples(words, words), min_size=1, max_size=4),
    count=st.one_of(st.integers(1, 40), st.sampled_from((2048, 2049, 4100))),
    step=st.one_of(st.integers(0, 20), words),
    stream=st.one_of(st.integers(0, 2), words),
    skew=st.integers(0, 3),
)
def test_uniforms_are_the_noise_rule_s(
    kernels: dict[str, HostKernel], keys: list[tuple[int, int]], count: int, step: int, stream: int, skew: int
) -> None:
    expected = fill(np.empty((len(keys), count), np.float32), keys, step, stream)
    assert np.array_equal(drawn(kernels["uniforms"], keys, count, step, stream, skew), expected)


def test_keys_are_read_when_the_kernel_runs(kernels: dict[str, HostKernel]) -> None:
    """So a captured launch draws for the seeds that the buffer holds by then."""
    keys, out = np.array([[1, 0]], np.int64), np.empty((1, 24), np.float32)
    launch = chain.uniforms(address(keys), address(out), 1, 24, step=3, stream=1)
    keys[:] = 2**63 - 1, 5
    kernels["uniforms"](launch)
    assert np.array_equal(out, fill(np.empty((1, 24), np.float32), [(2**63 - 1, 5)], 3, 1))


@settings(deadline=None, max_examples=150)
@given(
    images=st.integers(1, 4),
    count=st.one_of(st.integers(1, 40), st.sampled_from((1023, 1024, 1025, 4099))),
    skew=st.integers(0, 3),
    data=st.data(),
)
def test_flags_are_numpy_s(kernels: dict[str, HostKernel], images: int, count: int, skew: int, data: Any) -> None:
    # NaN on both sides of the values: whoever reads too far flags the picture.
    space = np.full(images * count + 2 * GUARD, np.nan, np.float32)
    values = space[GUARD - 1 + skew :][: images * count].reshape(images, count)
    values[:] = np.resize(np.array(FINITE, np.float32), values.shape)
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, images - 1)), data.draw(st.integers(0, count - 1))
        values[place] = data.draw(st.sampled_from(NOT_FINITE))
    flags = np.array([data.draw(st.sampled_from((0, 0, 1, 9))) for _ in range(images)], np.int32)
    expected = np.where(np.isfinite(values).all(axis=1), flags, 1)
    kernels["flag_nonfinite"](chain.flag_nonfinite(address(values), address(flags), images, count))
    assert flags.tolist() == expected.tolist()


def test_threads_stride_where_values_outnumber_them(
    kernels: dict[str, HostKernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chain, "MOST_BLOCKS", 2)
    values, flags = np.zeros((1, 9000), np.float32), np.zeros(1, np.int32)
    launch = chain.flag_nonfinite(address(values), address(flags), 1, 9000)
    assert launch.grid == (2, 1, 1)
    kernels["flag_nonfinite"](launch)
    assert flags.tolist() == [0]
    values[0, 8500] = np.inf
    kernels["flag_nonfinite"](launch)
    assert flags.tolist() == [1]


# --- what surrounds them ---------------------------------------------------------------------------------------------


def test_geometry_gives_a_thread_eight_uniforms_or_four_values() -> None:
    assert chain.uniforms(0, 0, images=3, count=2048, step=0, stream=0).grid == (1, 3, 1)
    assert chain.uniforms(0, 0, images=3, count=2049, step=0, stream=0).grid == (2, 3, 1)
    assert chain.flag_nonfinite(0, 0, images=2, count=1025).grid == (2, 2, 1)
    assert chain.flag_nonfinite(0, 0, images=2, count=2**24).grid == (chain.MOST_BLOCKS, 2, 1)


@pytest.mark.parametrize("images, count", [(0, 8), (65536, 8), (1, 0)])
def test_counts_that_no_grid_has_are_refused(images: int, count: int) -> None:
    with pytest.raises(InputError, match=f"found {images} of {count}"):
        chain.flag_nonfinite(0, 0, images, count)
    with pytest.raises(InputError, match=f"found {images} of {count}"):
        chain.uniforms(0, 0, images, count, 0, 0)


def test_words_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match="step must be a whole number"):
        chain.uniforms(0, 0, 1, 8, step=-1, stream=0)
    with pytest.raises(InputError, match="stream must be a whole number"):
        chain.uniforms(0, 0, 1, 8, step=0, stream=2**64)
    with pytest.raises(InputError, match=r"fewer than 2\*\*42 values"):
        chain.uniforms(0, 0, 1, 2**43, step=0, stream=0)


def test_ptx_assembles_for_every_gpu_without_spilling() -> None:
    ptx = compile_ptx(chain.source(), chain.FILE, "compute_75")  # Turing, which TensorRT for RTX serves too
    text = ptx.decode()
    assert set(re.findall(r"\.entry (\w+)\(", text)) == set(chain.KERNELS)
    assert re.search(r"st\.global\.v4\.f32", text)
    assert re.search(r"ld\.global\.nc\.v4\.[fu]32", text)
    assert not re.search(r"\b(atom|red|bar|barrier|shfl|vote)\b|\.shared|\.local", text)
    for architecture in ("sm_75", *ARCHITECTURES):
        assert assemble(ptx, architecture).local_bytes == 0
