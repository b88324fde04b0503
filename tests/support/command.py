"""A finished command of the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A finished command."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What an error said: one line, no traceback, nothing on stdout."""
        lines = [line for line in self.err.splitlines() if line.startswith("nextscale: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0], self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        return lines[0].removeprefix("nextscale: ")


Command = Callable[..., Run]
