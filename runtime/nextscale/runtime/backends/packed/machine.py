"""Which instruction sets this processor has, as far as the layout of packed weights depends on them."""

from __future__ import annotations

import platform
from functools import cache

import numpy as np

from nextscale.runtime.backends.packed.target import Machine

# The first whose names numpy finds one of; how numpy calls them differs between its versions.
_LEVELS = {
    "avx512": ("X86_V4", "AVX512_SKX", "AVX512F"),
    "avx2": ("X86_V3", "AVX2"),
    "sve": ("SVE",),
    "neon": ("NEON", "ASIMD"),
}


@cache
def instructions() -> str:
    """``avx512``, ``avx2``, ``sve``, ``neon``; of other processors the name of their family."""
    extensions = np.show_config(mode="dicts")["SIMD Extensions"]
    found = {*extensions.get("baseline", ()), *extensions.get("found", ())}
    return next((name for name, marks in _LEVELS.items() if found & {*marks}), platform.machine().lower() or "unknown")


def this_machine(library_version: str) -> Machine:
    """This processor under that version of ONNX Runtime."""
    return Machine(library_version, instructions())
