"""A folder that is made anew each time, without touching anything in it that was not made here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nextscale.plan.errors import EnvironmentProblem, InputError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


@contextmanager
def replaced(folder: Path, list_name: str) -> Iterator[Path]:
    """The folder, without the files of an earlier time: those that ``list_name`` in it lists under ``files``.

    A folder without such a list must be empty. The caller writes the new list first. Raises
    :class:`~nextscale.plan.errors.InputError` for a folder of something else,
    :class:`~nextscale.plan.errors.EnvironmentProblem` where it cannot be written.
    """
    try:
        for path in earlier(folder, list_name):
            path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise EnvironmentProblem(f"{folder} cannot be written: {error.strerror or error}") from error


def earlier(folder: Path, list_name: str) -> list[Path]:
    """The files of an earlier time; raises :class:`InputError` for a folder that was not made here."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    listed = folder / list_name
    try:
        files = json.loads(listed.read_text(encoding="utf-8"))["files"]
        names = [str(name) for name in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is there and is not a folder of this command: name another with -o, or remove it"
        ) from error
    inside = [folder / name for name in names if _NAME.fullmatch(name)]
    return [path for path in [*inside, listed] if path.resolve().is_relative_to(folder.resolve())]


def claimed(folder: Path, list_name: str, files: Sequence[str], folders: Sequence[str]) -> None:
    """Makes ``folder`` one in which those files and folders are this command's, and removes what an earlier time left.

    ``list_name`` in it remembers the claim, and is written before anything else is. Raises as :func:`replaced` does.
    """
    whole = _claims(folder, list_name) if folder.exists() else []
    with replaced(folder, list_name) as place:
        for path in whole:
            if path.is_dir():
                shutil.rmtree(path)
        (place / list_name).write_text(json.dumps({"files": list(files), "folders": list(folders)}), encoding="utf-8")


def _claims(folder: Path, list_name: str) -> list[Path]:
    """The folders that an earlier time claimed; raises as :func:`earlier` does."""
    earlier(folder, list_name)
    listed = folder / list_name
    names = json.loads(listed.read_text(encoding="utf-8")).get("folders", []) if listed.exists() else []
    paths = [folder / str(name) for name in names if _NAME.fullmatch(str(name))]
    return [p for p in paths if not p.is_symlink() and p.resolve().is_relative_to(folder.resolve())]
