"""What each side needs of memory: a process of its own opens it, makes one run and looks at itself.

In one process sides would share libraries, the allocator's leftovers and each other's peaks. A child holds one side
and nothing else: an eager side PyTorch, a bundle's the runtime without PyTorch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

from nextscale.compare.sides import Ask, Opener, Spec
from nextscale.plan import codec
from nextscale.plan.errors import EnvironmentProblem, InputError


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of such a process: its libraries imported, at its highest, and after the run; ``how`` they were counted.

    ``Pss`` counts a shared page by its share and was sampled every few milliseconds; ``peak RSS`` is the system's own
    high-water mark, where there is nothing better, and knows no later level. ``device`` is what the run left taken on
    the GPU, its libraries' own included; None on a CPU.
    """

    before: int
    peak: int
    after: int | None
    how: str
    device: int | None = None


def measure(opener: Opener, spec: Spec, ask: Ask) -> MemoryUse | None:
    """Memory of one side; None where the system does not tell.

    Raises what the side itself refuses, and :class:`~nextscale.plan.errors.EnvironmentProblem` where the child ends
    without an answer.
    """
    task = {
        "bundle": None if spec.bundle is None else str(spec.bundle),
        "model": str(opener.model),
        "vae": str(opener.vae),
        "plan": codec.to_json(spec.plan),
        "precision": spec.precision,
        "column": spec.column,
        "device": opener.device,
        "threads": opener.threads,
        "labels": ask.labels,
        "seed": ask.seed,
    }
    child = subprocess.run(
        [sys.executable, "-P", "-m", "nextscale.compare.child"],  # -P: nothing from the working directory
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EnvironmentProblem(
            f"the process that measures the memory of {spec.name!r} ended with status {child.returncode} ({last}): "
            "compare without memory, or with fewer pictures at once"
        )
    answer = json.loads(child.stdout)
    if "sentence" in answer:
        kind = InputError if answer["status"] == InputError.exit_status else EnvironmentProblem
        raise kind(answer["sentence"])
    return None if answer["memory"] is None else MemoryUse(**answer["memory"])
