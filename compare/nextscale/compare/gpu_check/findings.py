"""What a check found, and the time that it may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nextscale.plan.errors import NextscaleError

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"

Figures = Mapping[str, Any]
Subject = Mapping[str, str]


@dataclass(frozen=True)
class Finding:
    """One question and its answer. ``subject`` says of what (backend, recipe, precision, ...), as plain text by name.

    ``reason`` says why it was not run or what failed; None where it passed. ``data`` are figures, in seconds and bytes.
    """

    section: str
    subject: Subject
    state: str
    reason: str | None = None
    data: Figures = field(default_factory=dict)


class NotRun(Exception):
    """Something that this machine or the time left does not allow; its text says which."""


class Failed(Exception):
    """An answer that is wrong, with its figures."""

    def __init__(self, reason: str, data: Figures) -> None:
        super().__init__(reason)
        self.data = data


@dataclass
class Notes:
    """Findings as they are made. ``budget`` is in seconds from the making of this object."""

    budget: float
    found: list[Finding] = field(default_factory=list)
    _start: float = field(default_factory=time.monotonic)
    _longest: dict[str, float] = field(default_factory=dict)

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start

    def ask(
        self, section: str, subject: Subject, answer: Callable[[], Figures], expected: float = 5.0, kind: str = ""
    ) -> bool:
        """Runs ``answer`` and notes its figures; whether it passed. Whatever it raises is noted as a failure.

        Not where as much as the longest answer of its ``kind`` (else: its section) so far, and no less than
        ``expected`` seconds, would not fit into the time left.
        """
        kind = kind or section
        needed = max(self._longest.get(kind, 0.0), expected)
        if self.spent + needed > self.budget:
            over = f"{self.spent:.0f} of {self.budget:.0f} s are over"
            return self._note(section, subject, NOT_RUN, f"it takes about {needed:.0f} s, and {over}")
        started = time.monotonic()
        passed = self._answered(section, subject, answer)
        self._longest[kind] = max(self._longest.get(kind, 0.0), time.monotonic() - started)
        return passed

    def finish(self, section: str, subject: Subject, work: Callable[[], object]) -> None:
        """Runs ``work`` whatever the time is; only a failure is noted."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - what follows has to be asked all the same
            self._note(section, subject, FAILED, told(error))

    def _answered(self, section: str, subject: Subject, answer: Callable[[], Figures]) -> bool:
        try:
            return self._note(section, subject, PASSED, None, answer())
        except NotRun as why:
            return self._note(section, subject, NOT_RUN, str(why))
        except Failed as wrong:
            return self._note(section, subject, FAILED, str(wrong), wrong.data)
        except Exception as error:  # noqa: BLE001 - a compiler that is missing, memory that is out: all else still holds
            return self._note(section, subject, FAILED, told(error))

    def tick(self, *_: object) -> None:
        """For what tells its progress: raises :class:`NotRun` once the time is up, so that it ends there."""
        if self.spent > self.budget:
            raise NotRun(f"the {self.budget:.0f} s were over before it was done")

    def not_run(self, section: str, subject: Subject, reason: str) -> None:
        """A question that nothing here could answer."""
        self._note(section, subject, NOT_RUN, reason)

    def _note(
        self, section: str, subject: Subject, state: str, reason: str | None, data: Figures | None = None
    ) -> bool:
        self.found.append(Finding(section, dict(subject), state, reason, data or {}))
        return state == PASSED


def told(error: Exception) -> str:
    """An error in one line: what a user can meet as it is, all else by its type and its first line."""
    if isinstance(error, NextscaleError):
        return str(error)
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
