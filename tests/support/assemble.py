"""PTX to machine code for a named GPU, by NVIDIA's linker; no GPU is needed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cuda.bindings import nvjitlink

# Ampere, GeForce Ampere, Ada, Hopper, Blackwell, GeForce Blackwell.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@dataclass(frozen=True)
class Assembled:
    """Machine code, and what a thread of its largest kernel takes: registers, bytes of local memory (spills too)."""

    cubin: bytes
    registers: int
    local_bytes: int


def assemble(ptx: bytes, architecture: str) -> Assembled:
    """Assembles a module; raises AssertionError with the assembler's log where it refuses."""
    linker = nvjitlink.create(2, [f"-arch={architecture}", "-verbose"])
    try:
        try:
            nvjitlink.add_data(linker, nvjitlink.InputType.PTX, ptx, len(ptx), "kernel.ptx")
            nvjitlink.complete(linker)
        except nvjitlink.nvJitLinkError as refusal:
            log = bytearray(nvjitlink.get_error_log_size(linker))
            nvjitlink.get_error_log(linker, log)
            raise AssertionError(f"{architecture}: {log.decode()}") from refusal
        cubin = bytearray(nvjitlink.get_linked_cubin_size(linker))
        nvjitlink.get_linked_cubin(linker, cubin)
        log = bytearray(nvjitlink.get_info_log_size(linker))
        nvjitlink.get_info_log(linker, log)
    finally:
        nvjitlink.destroy(linker)
    registers = re.findall(r"info    : used (\d+) registers", log.decode())
    local = re.findall(r"(\d+) bytes lmem", log.decode())
    return Assembled(bytes(cubin), max(map(int, registers)), max(map(int, local)))
