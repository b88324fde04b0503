"""Opening a bundle: a folder of graphs, weights and a manifest, read-only and checked before anything loads it.

No file is handed to a native library before its name, its kind, its length and (unless opted out) its hash were found
to be what the manifest lists. The weights' may be left to who knows whether they are read at all. Nothing is ever
written into a bundle.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nextscale.plan.errors import InputError
from nextscale.runtime import manifest as manifests
from nextscale.runtime import signatures
from nextscale.runtime.errors import BundleError, ManifestError
from nextscale.runtime.manifest import FILE_NAME, WEIGHTS_FILE, File, Manifest

_LARGEST_MANIFEST = 64 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A checked bundle. ``digest`` is the sha256 of its manifest, and so of everything in it."""

    folder: Path
    manifest: Manifest
    digest: str

    def path(self, name: str) -> Path:
        """The path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder}: {name!r} is not a file of this bundle")
        return self.folder / name


def open_bundle(
    path: str | os.PathLike[str], verify: str = "full", expect_sha256: str | None = None, later: Collection[str] = ()
) -> Bundle:
    """Read and check the bundle in the folder ``path``.

    ``verify`` is ``full`` (hash every file) or ``size`` (names, kinds and lengths only). ``expect_sha256`` pins the
    manifest, and by it every file, to one digest. ``later`` are files that the caller hashes where they are read
    (:func:`check_weights`). Raises :class:`BundleError` or :class:`ManifestError`.
    """
    if verify not in ("full", "size"):
        raise InputError(f"verify is 'full' or 'size'; found {verify!r}")
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"a bundle is opened by the path of its folder; found {path!r}")
    with _readable(path):
        return _open(path, verify == "full", expect_sha256, later)


def check_weights(bundle: Bundle) -> None:
    """Hash the weights of a bundle that was opened with them left for ``later``. Raises :class:`BundleError`."""
    with _readable(bundle.folder):
        check_file(bundle.folder, WEIGHTS_FILE, bundle.manifest.files[WEIGHTS_FILE])


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """What the system refuses, in a sentence: no right to read, a path that is too long, a device that fails."""
    try:
        yield
    except OSError as error:
        raise BundleError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


def _open(path: str | os.PathLike[str], hashed: bool, expect_sha256: str | None, later: Collection[str]) -> Bundle:
    if not Path(path).is_dir():
        raise BundleError(f"{path} is not a bundle: there is no such folder; make one with `nextscale export`")
    folder = Path(path).resolve()
    content = _read_manifest(folder)
    digest = manifests.digest(content)
    _check_expected(folder, digest, expect_sha256)
    try:
        manifest = manifests.loads(content)
        signatures.check(manifest)
    except ManifestError as error:
        raise ManifestError(f"{folder / FILE_NAME}: {error}") from error
    for name, file in manifest.files.items():
        check_file(folder, name, file, hashed and name not in later)
    return Bundle(folder, manifest, digest)


def check_file(folder: Path, name: str, file: File, hashed: bool = True) -> None:
    """Refuse ``folder/name`` unless it is one plain file of that length and, where ``hashed``, of that hash."""
    path = sized(folder, name, file.size)
    if not hashed:
        return
    found = hash_file(path)
    if found != file.sha256:
        raise BundleError(
            f"{path} was changed or damaged: its sha256 is {found[:16]}..., the manifest says {file.sha256[:16]}...; "
            "copy or export the bundle again"
        )


def sized(folder: Path, name: str, size: int) -> Path:
    """The path of one plain file in the folder; refuses another length, in bytes."""
    path = _plain_file(folder, name)
    found = path.stat().st_size
    if found != size:
        raise BundleError(f"{path} has {found:,} bytes, the manifest says {size:,}: copy or export the bundle again")
    return path


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _plain_file(folder: Path, name: str) -> Path:
    """The path of a regular file with one link, really inside the folder."""
    path = folder / name
    try:
        found = path.lstat()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing, and the bundle needs it ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
        raise BundleError(f"{path} is {kind}: a bundle holds plain files only; copy it with its links resolved")
    if found.st_nlink != 1:
        raise BundleError(
            f"{path} has {found.st_nlink} hard links, so it can change from outside: make a real copy of it"
        )
    if path.resolve().parent != folder:
        raise BundleError(f"{path} lies outside its bundle")
    return path


def _read_manifest(folder: Path) -> bytes:
    if not (folder / FILE_NAME).exists():
        raise BundleError(f"{folder} is not a bundle: it has no {FILE_NAME}; make one with `nextscale export`")
    path = _plain_file(folder, FILE_NAME)
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise BundleError(f"{path} has {path.stat().st_size:,} bytes: no manifest is so long")
    return path.read_bytes()


def _check_expected(folder: Path, digest: str, expected: str | None) -> None:
    if expected is None:
        return
    if not isinstance(expected, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise InputError(f"expect_sha256 is 64 hex digits; found {expected!r}")
    if digest != expected.lower():
        raise BundleError(
            f"{folder} is another bundle than asked for: expected sha256 {expected.lower()}, its manifest has {digest}"
        )
