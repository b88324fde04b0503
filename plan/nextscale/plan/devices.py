"""Peak rates of named devices, for roofline times: what no kernel can beat, not what one reaches.

Tensor-core rates are dense (no sparsity) with float32 accumulation, float32 is that of the ordinary cores, all at the
boost clock, from NVIDIA's datasheets and architecture white papers (A100: 80 GB SXM; H100 and H200: SXM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nextscale.plan.errors import InputError


@dataclass(frozen=True)
class Device:
    """``tflops`` per precision, memory bandwidth in GB/s (10^9 bytes) and memory in GB; 0 GB where it is not known."""

    name: str
    tflops: Mapping[str, float]
    bandwidth: float
    memory: float = 0.0

    def seconds(self, flops: float, moved: float, precision: str) -> float:
        """Roofline time of work and traffic (bytes): whichever takes longer alone."""
        if precision not in self.tflops:
            raise InputError(f"{self.name} has no rate for {precision!r}; it has {', '.join(self.tflops)}")
        return max(flops / (self.tflops[precision] * 1e12), moved / (self.bandwidth * 1e9))


def _gpu(name: str, half: float, single: float, bandwidth: float, memory: float) -> Device:
    return Device(name, {"fp16": half, "bf16": half, "fp32": single}, bandwidth, memory)


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("RTX 3090", 71.0, 35.6, 936.0, 24),
        _gpu("RTX 4090", 165.2, 82.6, 1008.0, 24),
        _gpu("RTX 5090", 209.5, 104.8, 1792.0, 32),
        _gpu("A100", 312.0, 19.5, 2039.0, 80),
        _gpu("H100", 989.4, 66.9, 3350.0, 80),
        _gpu("H200", 989.4, 66.9, 4800.0, 141),
    )
}


def device(name: str) -> Device:
    """The device of that name, in any case; raises :class:`InputError` with the known names."""
    for known in DEVICES.values():
        if known.name.lower().replace(" ", "") == name.lower().replace(" ", "").replace("-", "").replace("_", ""):
            return known
    raise InputError(f"device {name!r} is unknown; known are {', '.join(DEVICES)}")


def cpu(gflops: float, bandwidth: float, name: str = "CPU") -> Device:
    """A CPU by its measured GFLOP/s (float32; half precision runs no faster there) and GB/s."""
    if gflops <= 0 or bandwidth <= 0:
        raise InputError(f"a CPU of {gflops} GFLOP/s and {bandwidth} GB/s cannot compute: both must be above 0")
    return Device(name, dict.fromkeys(("fp32", "fp16", "bf16"), gflops / 1e3), bandwidth)
