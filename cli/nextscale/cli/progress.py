"""How far a long command is: a bar on a terminal, plain lines elsewhere, always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import rich.progress

from nextscale.cli.errors import check_stop
from nextscale.cli.output import console

QUIET_SECONDS = 10.0  # between two plain lines of one stage


class Progress:
    """A context manager that is called with (stage, done, total, what), as exporters do. Units do not matter."""

    def __init__(self) -> None:
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None
        self._stage, self._told = "", 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            text = (TextColumn("{task.description:<8}"), TextColumn("{task.fields[what]}"))
            columns = (text[0], BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), text[1])
            self._bar = Progress(*columns, console=console(stderr=True), transient=False)
            self._bar.start()
        return self

    def __call__(self, stage: str, done: int, total: int, what: str) -> None:
        check_stop()
        if self._bar is None:
            self._line(stage, done, total, what)
            return
        if stage != self._stage:
            self._finish()
            self._task, self._stage = self._bar.add_task(stage, total=total, what=what), stage
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, what=what)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if error is None:
                self._finish()
            self._bar.stop()

    def _finish(self) -> None:
        """The stage before is over: its bar is full."""
        if self._bar is not None and self._task is not None:
            task = self._bar.tasks[self._task]
            self._bar.update(self._task, completed=task.total, what="")

    def _line(self, stage: str, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._told < QUIET_SECONDS:
            return
        self._stage, self._told = stage, now
        sys.stderr.write(f"{stage}: {what} ({100 * done // max(total, 1)} %)\n")
        sys.stderr.flush()
