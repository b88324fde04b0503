"""How far a build is, and whether it is to stop: TensorRT's progress monitor as one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nextscale.runtime.backends.tensorrt.library import Library

Tell = Callable[[float, str], None]  # how much is done, from 0 to 1, and the name of the phase


class Phases:
    """Nested phases of known numbers of steps; a phase is one step of its parent."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}  # name -> parent, steps, steps done

    def start(self, name: str, parent: str | None, steps: int) -> None:
        self._open[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, number: int) -> None:
        if name in self._open:
            parent, steps, _ = self._open[name]
            self._open[name] = (parent, steps, min(number + 1, steps))

    def finish(self, name: str) -> None:
        self._open.pop(name, None)

    @property
    def done(self) -> float:
        """How much is done of the whole, from 0 to 1: a finished step counts in full, an open phase by its own."""
        roots = [name for name, (parent, _, _) in self._open.items() if parent not in self._open]
        return min((self._fraction(name) for name in roots), default=0.0)

    def _fraction(self, name: str) -> float:
        _, steps, done = self._open[name]
        inner = [self._fraction(child) for child, (parent, _, _) in self._open.items() if parent == name]
        return min((done + min(inner, default=0.0)) / steps, 1.0)


def make_monitor(library: Library, tell: Tell, stopped: Callable[[], bool]) -> Any:
    """A progress monitor for a builder's configuration. It never goes back, and ends the build once ``stopped()``.

    TensorRT asks between two steps only, which may be seconds apart: who must stop sooner ends the process.
    """
    base = library.trt.IProgressMonitor

    class Monitor(base):  # type: ignore[valid-type, misc]
        def __init__(self) -> None:
            base.__init__(self)
            self._phases, self._furthest = Phases(), 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, parent_phase, num_steps)
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.step(phase_name, step)
            self._tell(phase_name)
            return not stopped()

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

        def _tell(self, phase: str) -> None:
            self._furthest = max(self._furthest, self._phases.done)
            tell(self._furthest, phase)

    return Monitor()
