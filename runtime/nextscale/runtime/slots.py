"""Who may run when: free slots, waiting with a bound, and the reasons to stop a call between two graphs."""

from __future__ import annotations

import numbers
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nextscale.plan.errors import InputError
from nextscale.runtime.chain import Chains
from nextscale.runtime.errors import Cancelled, PipelineClosed, PipelineTimeout

Cancel = threading.Event | Callable[[], bool]

_POLL = 0.05  # seconds between looks at a caller's cancellation while waiting


@dataclass(frozen=True)
class Control:
    """When a call has to stop: its deadline (``time.monotonic``), and its caller's cancellation."""

    timeout: float | None
    deadline: float | None
    cancel: Cancel | None

    @classmethod
    def start(cls, timeout: float | None, cancel: Cancel | None) -> Control:
        """A control whose ``timeout`` in seconds counts from now; None is no limit."""
        if cancel is not None and not callable(cancel) and not isinstance(cancel, threading.Event):
            raise InputError(f"cancel is a threading.Event, or a function that returns True to stop; found {cancel!r}")
        if timeout is None:
            return cls(None, None, cancel)
        return cls(timeout, time.monotonic() + check_seconds("timeout", timeout), cancel)

    def check(self) -> None:
        """Raise :class:`Cancelled` or :class:`PipelineTimeout` where the call has to stop."""
        cancel = self.cancel.is_set if isinstance(self.cancel, threading.Event) else self.cancel
        if cancel is not None and cancel():
            raise Cancelled("the call was cancelled by its caller")
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise PipelineTimeout(f"the call ran past its timeout of {self.timeout:g} s and was stopped")


def check_seconds(name: str, value: Any) -> float:
    """A number of seconds; one that is over already is negative. Raises :class:`InputError`."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not -1e9 <= value <= 1e9:  # NaN is in no range
        raise InputError(f"{name} is a number of seconds, 1e9 at most; found {value!r}")
    return float(value)


class SlotPool:
    """The slots of a pipeline, each with the chains on it, lent to one call at a time in the order of asking.

    ``release`` is called once the pool is closed and every slot has come back.
    """

    def __init__(self, chains: Sequence[Chains], wait: float, release: Callable[[], None]) -> None:
        self._free, self._count, self._wait, self._release = list(chains), len(chains), wait, release
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()  # one ticket for each call that waits; a slot is for the first
        self.closed = False

    @contextmanager
    def take(self, control: Control) -> Iterator[Chains]:
        """Lend a slot; waits for one at most ``wait`` seconds and no longer than the call's own timeout."""
        chains = self._wait_for_one(control)
        try:
            yield chains
        finally:
            with self._changed:
                self._free.append(chains)
                self._changed.notify_all()
                self._release_if_done()

    def check(self) -> None:
        """Raise :class:`PipelineClosed` after :meth:`close`."""
        if self.closed:
            raise PipelineClosed("this pipeline was closed; open another one")

    def close(self) -> None:
        """Refuse every later call; calls under way stop before their next graph."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
            self._release_if_done()

    def _release_if_done(self) -> None:
        """Under the lock: memory goes back when nobody can use it any more, and once."""
        if self.closed and len(self._free) == self._count:
            chains, self._free = self._free, []
            self._release()  # waits for what chains have asked for, so they go after it
            del chains

    def _wait_for_one(self, control: Control) -> Chains:
        end, ticket = time.monotonic() + self._wait, object()
        self._queue.append(ticket)
        try:
            while True:
                self.check()
                control.check()  # a caller's own function: never under the lock
                with self._changed:
                    if self._free and self._queue[0] is ticket:
                        return self._free.pop()
                    if time.monotonic() > end:
                        raise PipelineTimeout(
                            f"all {self._count} slots stayed busy for {self._wait:g} s: open the pipeline with more "
                            "slots, or a longer wait"
                        )
                    self._changed.wait(_POLL)
        finally:
            with self._changed:
                self._queue.remove(ticket)
                self._changed.notify_all()  # the next in line may go now
