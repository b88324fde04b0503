"""CUDA kernels on the host: the same source, compiled by a C++ compiler, its threads run one after the other.

It serves kernels whose threads exchange nothing, as all of ours. ``cuda_on_host.h`` has what CUDA has and C++ has not.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nextscale.plugins.kernel import Launch

SHIM = Path(__file__).with_name("cuda_on_host.h")


def compiler() -> str:
    """The C++ compiler: ``$CXX``, or the first of the usual names. A test without one fails and says so."""
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and shutil.which(name):
            return name
    raise AssertionError("testing the CUDA kernels on a CPU needs a C++ compiler: install g++ or clang, or set CXX")


class HostKernel:
    """One kernel of a source, compiled with ``options`` into ``folder``."""

    def __init__(self, source: str, name: str, folder: Path, options: Sequence[str] = ()) -> None:
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        unit = folder / f"{name}.cpp"
        unit.write_text(
            f'#include "{SHIM}"\n{source}\n'
            'extern "C" void run(const unsigned* grid, const unsigned* block, void** arguments)\n'
            f"{{ on_host::launch({name}, grid, block, arguments); }}\n"
        )
        library = folder / f"{name}.so"
        warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
        # Alignment and overflow among them; a trap, so that Python says where.
        checks = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
        command = [compiler(), "-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", *checks, *warnings]
        command += [*options, str(unit), "-o", str(library)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        self._run = ctypes.CDLL(str(library)).run

    def __call__(self, launch: Launch) -> None:
        """Runs every thread of the launch; addresses are the host's."""
        assert launch.kernel == self.name
        values = [ctypes.create_string_buffer(argument.tobytes(), argument.nbytes) for argument in launch.arguments]
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        extent = ctypes.c_uint * 3
        self._run(extent(*launch.grid), extent(*launch.block), addresses)
