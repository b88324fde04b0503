"""The one checker: no status, no exception and no refusal of CUDA or TensorRT passes it."""

from __future__ import annotations

import pytest
from cuda.bindings import driver
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.checks import ADVICE, accepted, checked
from nextscale.runtime.backends.cuda import open_device
from nextscale.runtime.errors import BackendError

FAILURES = [status for status in driver.CUresult if int(status) != 0]


@given(st.sampled_from(FAILURES), st.lists(st.integers(), max_size=2))
def test_every_status_but_success_is_our_error(status: driver.CUresult, values: list[int]) -> None:
    with pytest.raises(BackendError, match=f"^CUDA cannot do it: {status.name} ") as caught:
        checked("do it", lambda: (status, *values))
    assert (ADVICE.get(status.name) or "") in str(caught.value)


@given(st.lists(st.integers(), max_size=3))
def test_success_gives_the_values_alone(values: list[int]) -> None:
    found = checked("do it", lambda: (driver.CUresult.CUDA_SUCCESS, *values))
    assert found == (None if not values else values[0] if len(values) == 1 else tuple(values))


def test_what_is_no_status_is_left_alone() -> None:
    assert checked("do it", lambda: (1, 2)) == (1, 2)
    assert checked("do it", lambda: ()) == ()
    assert checked("do it", divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize("error", [RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), ValueError(""), OSError(3)])
def test_what_cuda_core_raises_is_our_error(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(BackendError, match=r"^CUDA cannot take memory: ") as caught:
        checked("take memory", fail)
    assert caught.value.__cause__ is error
    assert ("use fewer slots or smaller batches" in str(caught.value)) == ("MEMORY" in str(error))


def test_every_advice_is_of_a_status_that_there_is() -> None:
    assert set(ADVICE) <= {status.name for status in FAILURES}


@pytest.mark.parametrize("answer", [False, None])
def test_a_refusal_of_tensorrt_is_our_error(answer: object) -> None:
    with pytest.raises(BackendError, match="TensorRT does not run step_03: the reason"):
        accepted("run step_03", answer, "the reason")
    with pytest.raises(BackendError, match="TensorRT does not run step_03"):
        accepted("run step_03", answer)


@pytest.mark.parametrize("answer", [True, 0, "", object()])
def test_any_other_answer_is_one(answer: object) -> None:
    assert accepted("run", answer) is answer


@pytest.mark.parametrize("ordinal", [-1, "0", True, None])
def test_a_device_is_a_number(ordinal: object) -> None:
    with pytest.raises(InputError, match="a CUDA device is a whole number from 0 on"):
        open_device(ordinal)  # type: ignore[arg-type]


def test_without_a_driver_the_answer_says_what_to_install() -> None:
    try:
        driver.cuInit(0)
    except RuntimeError:
        with pytest.raises(BackendError, match=r"CUDA cannot start: .*install the NVIDIA driver"):
            open_device()
    else:
        pytest.skip("this machine has a driver")
