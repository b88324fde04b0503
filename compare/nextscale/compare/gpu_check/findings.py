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

    def ask(self, section: str, subject: Subject, answer: Callable[[], Figures], expected: float = 5.0) -> bool:
        """Runs ``answer`` and notes its figures; whether it passed.

        Not where the section's longest answer so far (at first: ``expected`` seconds) would not fit into the time left.
        What a user can meet is noted as a failure; what is our mistake goes on.
        """
        needed = self._longest.get(section, expected)
        if self.spent + needed > self.budget:
            over = f"{self.spent:.0f} of {self.budget:.0f} s are over"
            return self._note(section, subject, NOT_RUN, f"it takes about {needed:.0f} s, and {over}")
        started = time.monotonic()
        try:
            passed = self._note(section, subject, PASSED, None, answer())
        except NotRun as why:
            passed = self._note(section, subject, NOT_RUN, str(why))
        except Failed as wrong:
            passed = self._note(section, subject, FAILED, str(wrong), wrong.data)
        except NextscaleError as error:
            passed = self._note(section, subject, FAILED, str(error))
        self._longest[section] = max(self._longest.get(section, 0.0), time.monotonic() - started)
        return passed

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
