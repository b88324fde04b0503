"""A folder that is made anew each time, without touching anything in it that was not made here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from nextscale.plan.errors import EnvironmentProblem, InputError


@dataclass(frozen=True)
class Listing:
    """The JSON file ``name`` by which a command knows its own folder; its entry ``files`` lists what the folder has.

    ``ours`` says whether what was found in it is this command's; ``files`` matches the names that the command writes.
    """

    name: str
    ours: Callable[[dict[str, Any]], bool]
    files: re.Pattern[str]


@contextmanager
def replaced(folder: Path, listing: Listing) -> Iterator[Path]:
    """The folder, without the files of an earlier time: those that are listed in it and that the command writes.

    A folder without such a list must be empty. The caller writes the new list first. Raises
    :class:`~nextscale.plan.errors.InputError` for a folder of something else,
    :class:`~nextscale.plan.errors.EnvironmentProblem` where it cannot be written.
    """
    try:
        for path in earlier(folder, listing):
            path.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise EnvironmentProblem(f"{folder} cannot be written: {error.strerror or error}") from error


def earlier(folder: Path, listing: Listing) -> list[Path]:
    """The files of an earlier time; raises :class:`InputError` for a folder that was not made here."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    listed = folder / listing.name
    try:
        found = json.loads(listed.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not (isinstance(found, dict) and isinstance(found.get("files"), list) and listing.ours(found)):
        raise InputError(f"{folder} is there and is not a folder of this command: name another with -o, or remove it")
    inside = [folder / name for name in map(str, found["files"]) if listing.files.fullmatch(name)]
    return [path for path in [*inside, listed] if path.resolve().is_relative_to(folder.resolve())]


def claimed(folder: Path, list_name: str, files: Sequence[str], folders: Sequence[str]) -> None:
    """Makes ``folder`` one in which those files and folders are this command's, and removes them from an earlier time.

    ``list_name`` in it remembers the claim, and is written before anything else is. A folder with any other claim is
    refused, so nothing is removed that a file names and this command does not. Raises as :func:`replaced` does.
    """
    claim = {"files": list(files), "folders": list(folders)}
    listing = Listing(list_name, claim.__eq__, re.compile("|".join(map(re.escape, files))))
    with replaced(folder, listing) as place:
        for path in (place / name for name in folders):
            if path.is_dir() and not path.is_symlink() and path.resolve().is_relative_to(place.resolve()):
                shutil.rmtree(path)
        (place / list_name).write_text(json.dumps(claim), encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be made, before minutes are spent on what it is for; leaves nothing there.

    Raises :class:`~nextscale.plan.errors.EnvironmentProblem`.
    """
    missing: list[Path] = []
    try:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EnvironmentProblem(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        for place in missing:
            with suppress(OSError):
                place.rmdir()
