from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from nextscale.compare import machine as machine_module
from nextscale.compare.machine import OtherWork, this_machine


def test_this_machine_says_what_it_is() -> None:
    machine = this_machine()
    assert machine.cores >= 1
    assert machine.processor
    assert {"nextscale", "numpy"} <= set(machine.versions)
    assert machine.busy is None or machine.busy >= 0


@pytest.mark.parametrize(
    ("busy", "cores", "warned"), [(None, 2, False), (0.1, 2, False), (1.5, 2, True), (1.5, 64, False)]
)
def test_other_work_is_told_where_it_must_have_disturbed(busy: float | None, cores: int, warned: bool) -> None:
    machine = replace(this_machine(), busy=busy, cores=cores)
    assert (machine.warning is not None) == warned


def test_what_our_children_did_is_our_own() -> None:
    before = machine_module._worked()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert machine_module._worked() - before >= 0.25


def test_our_own_work_is_not_others() -> None:
    others = OtherWork()
    before = others.cores()
    if before is None:
        pytest.skip("this system does not tell")
    start, own = time.perf_counter(), time.process_time()
    while time.perf_counter() - start < 0.5:
        pass
    worked = (time.process_time() - own) / (time.perf_counter() - start)
    found = others.cores()
    assert found is not None
    assert found <= (os.cpu_count() or 1) - worked + 0.2
