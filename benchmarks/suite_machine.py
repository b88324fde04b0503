"""What a machine's folder of results is called."""

from __future__ import annotations

import re

from nextscale.compare.machine import Machine
from nextscale.runtime.backends.packed.machine import instructions

DROPPED = r"\(r\)|\(tm\)|\bprocessor\b|\bcpu\b|@.*|\d+-core\b"


def machine_name(machine: Machine) -> str:
    """``intel-xeon-2-cores-avx512``: processor, cores that may be used, instruction set."""
    processor = re.sub(DROPPED, " ", machine.processor.lower())
    words = [*re.findall(r"[a-z0-9]+", processor), str(machine.cores), "core" if machine.cores == 1 else "cores"]
    return "-".join([*words, instructions()])
