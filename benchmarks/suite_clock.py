"""The runtime's own time: what a picture takes beside its graphs and its noise, seen from around the backend's calls.

Nothing of the runtime is changed: a backend that is handed to :meth:`Pipeline.open` puts a clock around what it
prepares.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nextscale.runtime.backends.base import Call
from nextscale.runtime.backends.onnxruntime import OnnxRuntime, Sessions
from nextscale.runtime.bundle import Bundle


@dataclass
class Spent:
    """Seconds that the thread which asks for pictures spent in graphs and in drawing noise, since :meth:`start`."""

    graphs: float = 0.0
    noise: float = 0.0
    thread: int = 0

    def start(self) -> None:
        """From here on, in this thread; what another does meanwhile costs a picture nothing."""
        self.graphs, self.noise, self.thread = 0.0, 0.0, threading.get_ident()


class Timed:
    """A call with a clock around it."""

    def __init__(self, call: Call, spent: Spent, kind: str) -> None:
        self._call, self._spent, self._kind = call, spent, kind

    def execute(self) -> None:
        """The call."""
        start = time.perf_counter()
        self._call.execute()
        if threading.get_ident() == self._spent.thread:
            setattr(self._spent, self._kind, getattr(self._spent, self._kind) + time.perf_counter() - start)


class Clocked(OnnxRuntime):
    """ONNX Runtime on the packed target, its graphs and its noise with clocks around them: ``spent``."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads=threads, packed=True, verify="size")
        self.spent = Spent()

    def open(self, bundle: Bundle, batch_sizes: tuple[int, ...] | None = None) -> Sessions:
        """As it is, but for the clocks."""
        loaded = super().open(bundle, batch_sizes)
        for name, kind in (("prepare", "graphs"), ("uniforms", "noise")):
            setattr(loaded, name, self._timed(getattr(loaded, name), kind))
        return loaded

    def _timed(self, make: Callable[..., Call], kind: str) -> Callable[..., Call]:
        def made(*arguments: Any) -> Call:
            return Timed(make(*arguments), self.spent, kind)

        return made
