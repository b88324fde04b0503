"""A hidden folder to write into, one process at a time, gone at the end whatever happens."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nextscale.plan.errors import InputError


@contextmanager
def hidden_folder(parent: Path, name: str, busy: str) -> Iterator[Path]:
    """A new folder ``.<name>.tmp-<process>`` in ``parent`` (which is there), removed with what is still in it.

    What a process that was killed left behind is removed first. Raises :class:`InputError` with ``busy`` where another
    process has one of the same name.
    """
    lock = FileLock(parent / f".{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(busy) from error
    folder = parent / f".{name}.tmp-{os.getpid()}"
    try:
        for left in parent.glob(f".{name}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)
