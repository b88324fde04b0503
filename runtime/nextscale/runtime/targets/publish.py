"""Writing a target folder: in a hidden folder beside its place that outlives an interruption, then renamed whole.

Nothing in the hidden folder counts as a target: engines lie there under their own name only once they are whole, each
with a record of what it was built from, so that the next build takes them up and an interruption costs one engine.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.runtime.bundle import hash_file
from nextscale.runtime.errors import ManifestError
from nextscale.runtime.manifest import FILE_NAME as BUNDLE_FILE
from nextscale.runtime.targets.manifest import Target, dumps, loads

FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
RECORD = ".record.json"  # <graph>.record.json beside <graph>.engine


def check_place(place: Path, name: str, file_name: str) -> None:
    """Nothing is written into a bundle, and nothing is replaced that is no target, which has a ``file_name``.

    Raises :class:`InputError`.
    """
    inside = [folder for folder in (place.resolve(), *place.resolve().parents) if (folder / BUNDLE_FILE).exists()]
    if inside:
        raise InputError(f"{place} lies in the bundle {inside[0]}, and bundles are not written to: give another folder")
    there = place / name
    if there.exists() and not (there / file_name).is_file():
        raise InputError(
            f"{there} is there and is no target (it has no {file_name}): remove it, or give another folder"
        )


@contextmanager
def reported(place: Path) -> Iterator[None]:
    """A full or forbidden disk in one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            free = shutil.disk_usage(place).free if place.is_dir() else 0
            raise EnvironmentProblem(
                f"the disk is full ({free / 1e6:.0f} MB free at {place}): nothing was kept"
            ) from error
        raise EnvironmentProblem(f"{error.filename or place}: {error.strerror or error}") from error


@contextmanager
def hidden_folder(place: Path, name: str, waits: Callable[[], None] | None = None) -> Iterator[Path]:
    """``.NAME.building`` in ``place``, for one process at a time; what is finished in it stays for the next one.

    Where another process builds the same target, ``waits`` is called once and its end awaited; without ``waits`` that
    raises :class:`InputError`. Raises :class:`EnvironmentProblem` where ``place`` cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = place / f".{name}.building"
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place / f".{name}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            if waits is None:
                raise
            waits()
            lock.acquire(timeout=-1)
            place.mkdir(parents=True, exist_ok=True)  # the other one may have removed it, empty
    except Timeout as error:
        raise InputError(
            f"another build is writing {place / name}: wait for it, or give another folder with -o"
        ) from error
    except OSError as error:
        raise EnvironmentProblem(
            f"{place} cannot be written to ({error.strerror}): give another folder with -o"
        ) from error
    try:
        _put_back(place, name)
        folder.mkdir(exist_ok=True)
        _sweep(folder)
        yield folder
    except OSError as error:
        if error.errno in FULL:  # what is finished would only be in the way
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        _put_back(place, name)  # an interruption may have come between two renames
        if folder.is_dir():
            _sweep(folder)
            with suppress(OSError):
                folder.rmdir()  # only where nothing in it is finished
        with suppress(OSError):  # where an open file cannot be removed, it stays: an empty one is no lock
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            place.rmdir()  # made here, and nothing came into it


def unfinished(place: Path, name: str) -> list[Target]:
    """What of a target that was not finished lies there for its next build: targets of one engine each."""
    return [*recorded(place / f".{name}.building")]


def clear(folder: Path) -> None:
    """Removes what lies finished in the hidden folder: nobody wants it."""
    for path in folder.iterdir():
        path.unlink()


def record(folder: Path, target: Target) -> None:
    """Says of the one engine of ``target``, whose file is whole, what it was built from."""
    (engine,) = target.engines
    path = folder / f"{engine.graph}{RECORD}"
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(dumps(target), encoding="utf-8")
    sync(partial)
    partial.replace(path)


def recorded(folder: Path) -> Iterator[Target]:
    """What lies finished in the hidden folder: targets of one engine each."""
    for path in sorted(folder.glob(f"*{RECORD}")):
        with suppress(ManifestError):
            yield loads(path.read_bytes())


def publish(folder: Path, place: Path, name: str) -> None:
    """The hidden folder becomes ``place/name`` in one rename; a target that was there goes once it is replaced."""
    for path in folder.iterdir():
        sync(path)
    final, old = place / name, place / f".{name}.old"
    if final.exists():
        final.rename(old)
    folder.rename(final)  # whatever happens here, leaving the hidden folder puts the old one back
    shutil.rmtree(old, ignore_errors=True)


def tidy(folder: Path, target: Target) -> None:
    """Removes what is left of building from a published target: records, and engines that are not the target's.

    Only then: until the rename, an interruption leaves every finished engine to the next build.
    """
    wanted = {engine.file for engine in target.engines}
    for path in folder.iterdir():
        if path.name.endswith(RECORD) or (path.suffix == ".engine" and path.name not in wanted):
            path.unlink()


def sync(path: Path) -> None:
    """Has the operating system put a file on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def digest(path: Path) -> str:
    """The sha256 of a file that was just written."""
    sync(path)
    return hash_file(path)


def _put_back(place: Path, name: str) -> None:
    """What was put aside by a process that was ended between two renames."""
    final, old = place / name, place / f".{name}.old"
    if old.is_dir() and not final.exists():
        old.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes all but finished engines and their records."""
    finished = {path.name.removesuffix(RECORD) for path in folder.glob(f"*{RECORD}")}
    for path in folder.iterdir():
        if path.name.removesuffix(RECORD) in finished and path.name.endswith(RECORD):
            continue
        if path.suffix != ".engine" or path.stem not in finished:
            path.unlink()
