"""Opening a target folder: found, read and checked before a byte of it reaches a native library."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nextscale.plan.errors import InputError
from nextscale.runtime.bundle import Bundle, check_file
from nextscale.runtime.errors import BackendError, BundleError, ManifestError
from nextscale.runtime.manifest import File
from nextscale.runtime.targets.command import build_command, moved, rebuild_command
from nextscale.runtime.targets.manifest import FILE_NAME, Engine, NewerManifest, Target, loads
from nextscale.runtime.targets.places import beside, folder_name, in_cache
from nextscale.runtime.targets.stale import GRAPH, Difference

T = TypeVar("T")
_LARGEST_MANIFEST = 2**20
# What a file's refusal says of bundles behind its reason.
OF_BUNDLES = r"[:;,] (?:copy or export|and the bundle needs|a bundle holds|make a real copy)| its bundle"


@dataclass(frozen=True)
class OpenTarget:
    """A checked target folder."""

    folder: Path
    target: Target

    def path(self, graph: str) -> Path:
        """The engine file of a graph."""
        return self.folder / self.target.engine(graph).file

    def engine(self, graph: str) -> Engine:
        """What the manifest says of it."""
        return self.target.engine(graph)


def find_target(
    bundle: Bundle, flavor: str, sm: str, targets: Path | None = None, known: Sequence[str] | None = None
) -> Path:
    """The folder of ``bundle``'s target for a flavour and a compute capability such as ``sm86``.

    Looked for beside the bundle and in the user's cache, or only in the folder ``targets`` (what ``nextscale build -o``
    was given). ``known`` are the GPUs that the flavour builds for, None where that is any. Raises :class:`BackendError`
    with the command that builds it.
    """
    name = folder_name(flavor, sm, bundle.manifest.precision)
    places = [beside(bundle), in_cache(bundle)] if targets is None else [Path(targets)]
    for place in places:
        if (place / name / FILE_NAME).is_file():
            return place / name
    others = sorted({p.parent.name for place in places for p in place.glob(f"[!.]*/{FILE_NAME}")})
    there = f"there {'is' if len(others) == 1 else 'are'} {', '.join(others)}" if others else "nothing is built there"
    said = f"{bundle.folder} has no target {name} in {places[0]} ({there}): "
    if known is not None and sm not in known:
        other = build_command(bundle.folder, "tensorrt", sm, targets)
        raise BackendError(f"{said}{flavor} builds none for {sm}; take the flavour tensorrt: `{other}`")
    raise BackendError(f"{said}build it with `{build_command(bundle.folder, flavor, sm, targets)}`")


def targets_of(bundle: Bundle) -> dict[Path, Target | str]:
    """Every target folder of a bundle with engines; of one that cannot be read, why."""
    return every(bundle, FILE_NAME, read_target)


def every(bundle: Bundle, file_name: str, read: Callable[[Path], T]) -> dict[Path, T | str]:
    """Every folder with such a manifest, beside a bundle and in the user's cache, as ``read`` has it.

    Of one that cannot be read, for which ``read`` raises :class:`BackendError`, the sentence.
    """
    found: dict[Path, T | str] = {}
    for place in (beside(bundle), in_cache(bundle)):
        for path in sorted(place.glob(f"[!.]*/{file_name}")):
            try:
                found[path.parent] = read(path.parent)
            except BackendError as error:
                found[path.parent] = str(error)
    return found


def open_target(folder: Path, bundle: Bundle, verify: str = "full") -> OpenTarget:
    """Read and check a target folder against its bundle; ``verify`` is ``full`` (hash every engine) or ``size``.

    Raises :class:`BackendError` that names the field, what was found, and the command that rebuilds the target.
    """
    if verify not in ("full", "size"):
        raise InputError(f"verify is 'full' or 'size'; found {verify!r}")
    target = read_target(folder)
    folder = Path(folder).resolve()
    command = rebuild_command(bundle.folder, target, folder.parent)
    for difference in _against_bundle(target, bundle):
        raise BackendError(
            f"{folder} was built for something else than {bundle.folder}: {difference}; rebuild it with `{command}`"
        )
    for engine in target.engines:
        if wrong := damage(folder, engine, verify == "full"):
            raise BackendError(f"{folder}: {wrong}; rebuild it with `{command} --force`")
    return OpenTarget(folder, target)


def damage(folder: Path, engine: Engine, hashed: bool = True) -> str | None:
    """None where the file of an engine is what was written (``hashed``: byte by byte), else what is wrong with it."""
    folder = folder.resolve()
    try:
        check_file(folder, engine.file, File(engine.sha256, engine.size), hashed)
    except (BundleError, OSError) as error:
        said = str(error).replace(f"{folder}{os.sep}", "")
        return re.split(OF_BUNDLES, said)[0]
    return None


def read_target(folder: Path) -> Target:
    """The manifest of a target folder, checked against nothing but itself; raises :class:`BackendError`."""
    path = Path(folder) / FILE_NAME
    try:
        if not path.is_file() or path.is_symlink():
            raise BackendError(
                f"{folder} is not a built target: it has no {FILE_NAME}; make one with `nextscale build`"
            )
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise BackendError(f"{path} has {path.stat().st_size:,} bytes: no target's manifest is so long")
        return loads(path.read_bytes())
    except ManifestError as error:
        then = ", or" if isinstance(error, NewerManifest) else ";"
        raise BackendError(
            f"{path}: {error}{then} build the target again with `nextscale build ... --force`"
        ) from error
    except OSError as error:
        raise BackendError(f"{path} cannot be read: {error.strerror or error}") from error


def check_machine(
    target: Target, flavor: str, library_version: str, sm: str, bundle: Path, place: Path | None = None
) -> None:
    """Refuse engines of another flavour, library version or GPU than what is here, before they are deserialised.

    ``flavor`` and ``library_version`` are those of the library that is to run them, ``sm`` is the device's compute
    capability, such as ``sm86``; ``bundle`` is the bundle's folder and ``place`` the one that its targets lie in, for
    the command in the refusal. Raises :class:`BackendError`.
    """
    here = {"flavor": flavor, "library_version": library_version, "target": sm}
    for field, found in here.items():
        built = getattr(target, field)
        if built != found:
            raise BackendError(
                f"the engines of {target.bundle} were built for {field} {built}, and here it is {found}: rebuild them "
                f"with `{rebuild_command(bundle, moved(target, flavor, sm), place)}`"
            )


def _against_bundle(target: Target, bundle: Bundle) -> Iterator[Difference]:
    """What of a bundle a target depends on and does not match."""
    manifest = bundle.manifest
    if target.precision != manifest.precision:
        yield Difference("precision", target.precision, manifest.precision)
    wanted = {graph.name: manifest.files[graph.file].sha256 for graph in manifest.graphs}
    built = {engine.graph: engine.graph_sha256 for engine in target.engines}
    for graph in sorted({*wanted, *built}):
        if wanted.get(graph) != built.get(graph):
            yield Difference(f"{GRAPH} of {graph}", built.get(graph), wanted.get(graph))
    weights = manifest.files["weights.safetensors"].sha256
    if target.weights == "embedded" and target.weights_sha256 != weights:
        yield Difference("weights_sha256", target.weights_sha256, weights)
