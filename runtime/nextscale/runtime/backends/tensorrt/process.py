"""The builder's process, from the side that asks: one engine after the other, ended at once when that is wanted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Self

from nextscale.runtime import strict
from nextscale.runtime.backends.tensorrt.engine import Built, Job
from nextscale.runtime.backends.tensorrt.library import log
from nextscale.runtime.backends.tensorrt.progress import Tell
from nextscale.runtime.errors import BackendError
from nextscale.runtime.targets.manifest import Settings

MODULE = "nextscale.runtime.backends.tensorrt.worker"


class Builder:
    """A context manager: leaving it ends the process, whatever it is at."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process

    def __enter__(self) -> Self:
        # Not of this console's group: a Ctrl-C is told to the caller, who decides.
        apart: dict[str, Any] = (
            {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
            if sys.platform == "win32"
            else {"start_new_session": True}
        )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            **apart,
        )
        self._send({"settings": strict.write(self._settings), "log_level": log.getEffectiveLevel()})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            try:
                if stream is not None:
                    stream.close()  # the process ends by itself where it can
            except BrokenPipeError:
                pass
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            if self._process.poll() is None:  # interrupted a second time
                self._process.kill()
            self._errors.close()

    def build(self, job: Job, tell: Tell) -> Built:
        """Waits for one engine; the file is there when this returns.

        Raises :class:`BackendError`, OSError where the file cannot be written, or what a signal raises.
        """
        self._send(strict.write(job))
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            match message.pop("kind"):
                case "log":
                    log.log(message["level"], "%s: %s", job.graph.name, message["text"])
                case "progress":
                    tell(message["done"], message["phase"])
                case "built":
                    return strict.read(Built, message)
                case "failed":
                    raise self._failed(job, message)
        raise self._died(job)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; why is found where its answer is read

    def _failed(self, job: Job, message: dict[str, Any]) -> Exception:
        if "errno" not in message:
            return BackendError(message["text"])
        return OSError(message["errno"], message["strerror"] or message["text"], job.out)

    def _died(self, job: Job) -> BackendError:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()
        why = f"status {status}"
        if status < 0:
            why = signal.Signals(-status).name if -status in {*signal.Signals} else f"signal {-status}"
            why += ", most likely for want of memory" if why == "SIGKILL" else ""
        said = f" ({lines[-1][:200]})" if lines else ""
        log.debug("the builder's last lines: %s", lines)
        return BackendError(
            f"the builder of {self._settings.flavor} {self._settings.library_version} ended with {why}{said} at "
            f"{job.graph.name}: build again, and if it stays, report it with the output of `nextscale --debug build`"
        )
