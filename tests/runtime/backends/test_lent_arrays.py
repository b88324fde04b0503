"""A caller's arrays on a device, through whole pipelines on the double of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.host_cuda import HostDevice


class OnDevice:
    """A caller's array on the double of the device."""

    def __init__(self, device: HostDevice, shape: tuple[int, ...]) -> None:
        raw = np.zeros(int(np.prod(shape)) * 4 + 256, np.uint8)
        start = -raw.ctypes.data % 256
        self.array = raw[start : start + int(np.prod(shape)) * 4].view(np.float32).reshape(shape)
        device.lend(self.array)
        self.shape, self.dtype = shape, self.array.dtype
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (self.array.ctypes.data, False),
            "strides": None,
            "version": 3,
        }


@pytest.mark.parametrize("flavor", ["tensorrt", "onnxruntime"])
def test_pictures_are_made_in_the_callers_own_memory(gpu: Any, reference: Any, flavor: str) -> None:
    """Three pictures in passes of two: full ones are decoded in place, the rest is copied on the device."""
    gpu.build()
    pipeline = gpu.open(flavor, batch_sizes=(2,))
    height, width = pipeline.manifest.plan.image_size
    for seed in range(3):
        out = OnDevice(gpu.device, (3, 3, height, width))
        pipeline.generate([0, 1, 2], seed=seed, out=out)
        wanted = reference([0, 1, 2], seed=seed).floats
        assert np.array_equal(out.array.transpose(0, 2, 3, 1), wanted)
    image = 3 * height * width * 4
    downloads = [size for _, size in gpu.device.asked("download")]
    assert max(downloads) <= pipeline._slots._free[0].slot.layout.results[1]  # tokens and flags, and never a picture
    assert gpu.device.asked("copy")[-1] == ("copy", image)


def test_code_sums_and_pictures_stay_on_the_device(gpu: Any, reference: Any) -> None:
    gpu.build()
    pipeline = gpu.open(batch_sizes=(1,))
    made = reference([1], seed=3)
    last = list(pipeline.stream([1], seed=3))[-1]
    code_sum = OnDevice(gpu.device, last.code_sum.shape)
    code_sum.array[...] = last.code_sum
    out = OnDevice(gpu.device, (1, 3, *pipeline.manifest.plan.image_size))
    assert pipeline.decode(code_sum, out=out) is None
    assert np.array_equal(out.array.transpose(0, 2, 3, 1), made.floats)
    assert np.array_equal(pipeline.decode(code_sum), made.floats)


def test_a_steps_arrays_are_the_slots_own_memory(gpu: Any) -> None:
    gpu.build()
    pipeline = gpu.open(batch_sizes=(1,))
    for step in pipeline.stream([1], seed=3):
        array = step.array("code_sum")
        at = array.__cuda_array_interface__["data"][0]
        block = gpu.device.block(at, array.nbytes)
        assert block.kind == "device"
        found = block.raw[at - block.address :][: array.nbytes].view(np.float32).reshape(array.shape)
        assert np.array_equal(found, step.code_sum)
        assert array.__dlpack_device__() == (2, 0)


def test_a_steps_array_outlives_the_pipeline(gpu: Any) -> None:
    """The slot's memory goes when nobody holds an array on it any more; all other memory at once."""
    gpu.build()
    pipeline = gpu.open(batch_sizes=(1,))
    for step in pipeline.stream([1], seed=3):
        array = step.array("code_sum")
        if step.last:
            break
    pipeline.close()
    (block,) = [b for b in gpu.device.blocks.values() if b.kind == "device"]
    at = array.__cuda_array_interface__["data"][0] - block.address
    assert np.array_equal(block.raw[at : at + array.nbytes].view(np.float32).reshape(array.shape), step.code_sum)
    del array
    assert not [b for b in gpu.device.blocks.values() if b.kind == "device"]
