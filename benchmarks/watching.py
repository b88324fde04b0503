"""Running a command and looking at the memory of its process and of all that it starts."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Watched:
    """A command that ended well: seconds, what it printed, and the highest sums that were seen, in bytes.

    ``pss`` counts a shared page by its share; ``anonymous`` is what no file backs.
    """

    seconds: float
    output: str
    pss: int
    anonymous: int


def watched(command: Sequence[str], given: str = "", every: float = 0.02) -> Watched:
    """Runs it with ``given`` as its standard input; raises :class:`SystemExit` where it fails."""
    start, pss, anonymous = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile("w+") as to, tempfile.TemporaryFile("w+") as out:
        to.write(given)
        to.seek(0)
        running = subprocess.Popen(command, stdin=to, stdout=out)
        try:
            while running.poll() is None:
                now = [memory_of(pid) for pid in family(running.pid)]
                pss, anonymous = max(pss, sum(p for p, _ in now)), max(anonymous, sum(a for _, a in now))
                time.sleep(every)
        finally:
            running.kill()  # where this process is interrupted; nothing where it has ended
            running.wait()
        if running.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
        out.seek(0)
        return Watched(time.perf_counter() - start, out.read(), pss, anonymous)


def family(pid: int) -> Iterator[int]:
    """A process and all that it, or what it started, has started and not yet ended."""
    yield pid
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            started = listed.read_text(encoding="ascii").split()
        except OSError:
            continue
        for child in started:
            yield from family(int(child))


def memory_of(pid: int) -> tuple[int, int]:
    """Proportional set size and anonymous memory of a process in bytes; 0 once it is gone."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0, 0
    found = dict(re.findall(r"^(Pss|Anonymous):\s+(\d+) kB", rollup, re.MULTILINE))
    return int(found.get("Pss", 0)) * 1024, int(found.get("Anonymous", 0)) * 1024
