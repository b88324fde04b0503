"""From whatever stops a command to one sentence on stderr and an exit status; no traceback without ``--debug``.

Statuses: 1 a mistake of ours, 2 refused input, 3 the environment, 4 numbers that differ, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from nextscale.plan.errors import EnvironmentProblem, NextscaleError

NAME = "nextscale"
INTERNAL, REFUSED, ENVIRONMENT, INTERRUPTED = 1, 2, 3, 128 + signal.SIGINT

# Which extra brings a module that may be missing.
EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "huggingface_hub": "export",
    "filelock": "export",
    "onnxruntime": "cpu",
    "google": "cpu",  # protobuf
    "jinja2": "compare",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "cuda": "cuda",
    "polygraphy": "debug",
}


class Commands(TyperGroup):
    """The group of all commands. ``debug`` shows tracebacks; the option of that name sets it."""

    debug = False

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command; exits with its status, or returns it where not ``standalone_mode``."""
        self.debug = False
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")  # a terminal that has no multiplication sign still gets its table
        try:
            with stoppable():
                # A command returns nothing; a number is the status of an early exit.
                status = super().main(args, prog_name or NAME, complete_var, False, windows_expand_args, **extra) or 0
            if status == INTERRUPTED:  # the parser has turned it into a number
                raise KeyboardInterrupt
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is becomes a sentence
            if self.debug:
                traceback.print_exc()
            status, sentence = explained(error)
            if sentence:  # none where the parser has printed a help text instead
                sys.stderr.write(f"nextscale: {sentence}\n")
        if standalone_mode:
            sys.exit(status)
        return status


def explained(error: BaseException) -> tuple[int, str]:
    """The exit status and the sentence for what stopped a command."""
    match error:
        case NextscaleError():
            return error.exit_status, str(error)
        case KeyboardInterrupt() | typer.Abort():
            return INTERRUPTED, "interrupted; nothing half-finished was kept"
        case ModuleNotFoundError() if (module := (error.name or "").split(".")[0]) in EXTRAS:
            return ENVIRONMENT, _lacking(module, EXTRAS[module])
        case ImportError():
            return ENVIRONMENT, f"a package cannot be loaded ({_line(error)}): `nextscale doctor` shows what is there"
        case MemoryError():
            return ENVIRONMENT, "out of memory: close other programs, or use a smaller model, batch or precision"
        case RuntimeError() if type(error).__name__ == "OutOfMemoryError":  # PyTorch's, which is not imported for this
            return ENVIRONMENT, "out of memory on the GPU: end other programs on it, or take a smaller batch or model"
        case OSError():
            return ENVIRONMENT, f"{error.filename or 'the system'}: {error.strerror or _line(error)}"
    if hasattr(error, "format_message"):  # the parser's own: typer carries its parser under names that change
        message, context = " ".join(error.format_message().split()).rstrip("."), getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if message and context is not None else ""
        return REFUSED, f"{message}{hint}"
    advice = "run it again as `nextscale --debug ...` and report what it prints"
    return INTERNAL, f"this is a mistake in nextscale ({type(error).__name__}: {_line(error)}): {advice}"


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Imports inside need this extra as a whole, whichever of its packages is the first that is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (module := (error.name or "").split(".")[0]) not in EXTRAS:
            raise
        raise EnvironmentProblem(_lacking(module, extra)) from error


def _lacking(module: str, extra: str) -> str:
    return f"this needs the package {module}, which is missing: pip install 'nextscale[{extra}]'"


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGINT unwind the command, so that what it was writing is removed.

    A shell starts background jobs with SIGINT ignored; who then sends one means it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        _stops.append(KeyboardInterrupt())
        raise _stops[-1]

    def terminated(number: int, frame: FrameType | None) -> None:
        _stops.append(SystemExit(128 + number))
        raise _stops[-1]

    _stops.clear()
    handlers = {signal.SIGINT: interrupted, signal.SIGTERM: terminated}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with _told(handlers):
            yield
    finally:
        _stops.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _told(handlers: Mapping[signal.Signals, object]) -> Iterator[None]:
    """One line on stderr for a signal that something else than ``handlers`` holds back: an exporter while it traces.

    Python writes the number of every signal to the wake-up socket as it arrives, whoever handles it later.
    """
    numbers, arriving = socket.socketpair()
    arriving.setblocking(False)

    def watch() -> None:
        while caught := numbers.recv(1):
            number = signal.Signals(caught[0])
            if number in handlers and signal.getsignal(number) is not handlers[number]:
                sys.stderr.write("nextscale: stopping after the piece that is being traced ...\n")
                sys.stderr.flush()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(arriving.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        arriving.close()  # ends the watcher
        watcher.join()
        numbers.close()


_stops: list[BaseException] = []  # what signals have raised in this command


def check_stop() -> None:
    """Raises again what a signal raised, where a library swallowed it: in a destructor or a callback from C."""
    if _stops:
        raise _stops[-1]


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]
