"""The process that builds engines: jobs come in as lines of JSON, what happens goes out as lines of JSON.

A build runs for seconds in native code that nothing can interrupt; a process can be ended at once, and takes a crash
of a parser or of a builder with it. When the other side goes away, so does this one.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from queue import SimpleQueue
from typing import Any, TextIO

from nextscale.plan.errors import NextscaleError
from nextscale.runtime import strict
from nextscale.runtime.backends.tensorrt.engine import Job, Stopped, build_engine
from nextscale.runtime.backends.tensorrt.library import Library, load, log
from nextscale.runtime.targets.manifest import Settings

GRACE = 1.0  # seconds to leave the builder in good order before the process ends all the same
QUIET = 0.1  # seconds between two reports of progress


def main() -> None:
    """First line: settings and log level. Every other line: a job, answered by ``built``, ``failed`` or silence."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not for the other side
    talk = Talk(channel)
    jobs: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(jobs, stop), daemon=True).start()
    if (first := jobs.get()) is None:
        return
    log.setLevel(first["log_level"])
    log.propagate, log.handlers = False, [talk]
    try:
        settings = strict.read(Settings, first["settings"])
        library = load(settings.flavor)
        if settings.restore == "plugin":
            _register(library)
        while (job := jobs.get()) is not None:
            built = build_engine(library, settings, strict.read(Job, job), talk.progress, stop.is_set)
            talk.send(kind="built", **strict.write(built))
    except Stopped:
        return
    except NextscaleError as error:
        talk.send(kind="failed", text=f"{error}: {talk.complaint}" if talk.complaint else str(error))
    except OSError as error:
        talk.send(kind="failed", text=str(error), errno=error.errno, strerror=error.strerror)
    except MemoryError:
        talk.send(kind="failed", text="out of memory")


class Talk(logging.Handler):
    """This side's voice: log records, progress and results, one line each.

    ``complaint`` is the last error that was logged: why a builder returns nothing it says only there.
    """

    def __init__(self, channel: TextIO) -> None:
        super().__init__()
        self._channel, self._told, self.complaint = channel, 0.0, ""

    def send(self, **message: Any) -> None:
        """One line."""
        try:
            self._channel.write(json.dumps(message) + "\n")
            self._channel.flush()
        except BrokenPipeError:
            os._exit(1)  # nobody listens any more

    def emit(self, record: logging.LogRecord) -> None:
        """A log record, as text. Errors become part of what is raised; those that fail nothing are no errors."""
        if record.levelno >= logging.ERROR:
            self.complaint = record.getMessage().strip().split("\n")[0][:300]
        level = logging.INFO if record.levelno >= logging.ERROR else record.levelno
        self.send(kind="log", level=level, text=record.getMessage())

    def progress(self, done: float, phase: str) -> None:
        """How far the build is, not more often than anyone looks."""
        now = time.monotonic()
        if now - self._told >= QUIET:
            self._told = now
            self.send(kind="progress", done=done, phase=phase)


def _listen(jobs: SimpleQueue[dict[str, Any] | None], stop: threading.Event) -> None:
    """Hands lines on; when they end, the build is to stop, and the process ends soon whatever the build does."""
    for line in sys.stdin:
        jobs.put(json.loads(line))
    stop.set()
    jobs.put(None)
    time.sleep(GRACE)
    os._exit(1)


def _register(library: Library) -> None:
    from nextscale.plugins.tensorrt_plugin import register
    from nextscale.runtime.backends.nvrtc import compile_ptx

    register(library.trt, compile_ptx)


if __name__ == "__main__":
    main()
