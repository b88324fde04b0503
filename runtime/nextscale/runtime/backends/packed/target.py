"""A packed target, ``packed.json`` in its folder: for which processor and ONNX Runtime, of which bundle; finding it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from nextscale.runtime import strict
from nextscale.runtime.bundle import Bundle, check_file, sized
from nextscale.runtime.errors import BackendError, BundleError, ManifestError
from nextscale.runtime.manifest import WEIGHTS_FILE, File, Graph, check_file_name
from nextscale.runtime.packages import imported
from nextscale.runtime.targets.folder import OF_BUNDLES, every
from nextscale.runtime.targets.places import beside, folder_name, in_cache

FLAVOR, FILE_NAME, SCHEMA_VERSION = "onnxruntime-cpu", "packed.json", 2
WEIGHTS = "packed.bin"
PRECISIONS = ("fp32", "int8")  # that are packed
_LARGEST = 2**20
_HASH = re.compile(r"[0-9a-f]{64}")
_CHUNK = 2**20


@dataclass(frozen=True)
class Machine:
    """What packed weights are packed for: the version of ONNX Runtime, and the processor's instruction set."""

    library_version: str
    instructions: str


@dataclass(frozen=True)
class PackedGraph:
    """A graph as it is opened. ``graph_sha256`` is of the bundle's file; ``sha256`` and ``size``, in bytes, of this."""

    graph: str
    file: str
    graph_sha256: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Weights:
    """``packed.bin``: its BLAKE3, which of two gigabytes takes a core half the time of a sha256, and bytes."""

    blake3: str
    size: int


@dataclass(frozen=True)
class Packed:
    """A packed target of the bundle named ``bundle``. ``weights`` is the file that all graphs name; ``seconds`` is what
    packing took, ``versions`` what did it."""

    bundle: str
    library_version: str
    instructions: str
    precision: str
    weights_sha256: str
    graphs: tuple[PackedGraph, ...]
    weights: Weights
    seconds: float
    versions: Mapping[str, str]
    flavor: str = FLAVOR
    schema_version: int = SCHEMA_VERSION

    @property
    def files(self) -> tuple[str, ...]:
        """Every file beside the manifest: the graphs', then the weights."""
        return (*(each.file for each in self.graphs), WEIGHTS)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.graphs) + self.weights.size

    def path(self, folder: Path, graph: Graph) -> Path:
        """The file of a graph."""
        return folder / next(each.file for each in self.graphs if each.graph == graph.name)


def name_for(bundle: Bundle, machine: Machine) -> str:
    """``onnxruntime-cpu-avx512-1.31.1-fp32``."""
    return folder_name(FLAVOR, f"{machine.instructions}-{machine.library_version}", bundle.manifest.precision)


def build_command(bundle: Path, place: Path | None = None, force: bool = False) -> str:
    """What makes the target of a bundle, for a sentence that advises it."""
    from nextscale.runtime.targets.command import out_option, quoted

    return f"nextscale build {quoted(bundle)} --flavor {FLAVOR}{out_option(bundle, place)}{' --force' if force else ''}"


def find(bundle: Bundle, machine: Machine, targets: Path | None = None) -> list[Path]:
    """The folders of targets for this machine, beside the bundle and in the user's cache, or only in ``targets``."""
    places = [beside(bundle), in_cache(bundle)] if targets is None else [targets]
    folders = (place / name_for(bundle, machine) for place in places)
    return [folder for folder in folders if (folder / FILE_NAME).is_file()]


def misfit(folder: Path, bundle: Bundle, machine: Machine) -> str | None:
    """Why a target there is not to be opened: it cannot be read, or was made of or for something else."""
    try:
        return next(differences(read(folder), bundle, machine), None)
    except BackendError as error:
        return str(error.__cause__ or error)


def packed_targets(bundle: Bundle) -> dict[Path, Packed | str]:
    """Every packed target of a bundle; of one that cannot be read, why."""
    return every(bundle, FILE_NAME, read)


def read(folder: Path) -> Packed:
    """The manifest of a packed target, checked against nothing but itself; raises :class:`BackendError`."""
    path = folder / FILE_NAME
    try:
        if path.is_symlink() or path.stat().st_size > _LARGEST:
            raise ManifestError("a link, or too long to be one")
        data = strict.parse(path.read_bytes())
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise ManifestError(f"schema_version: this nextscale reads {SCHEMA_VERSION}, found {version!r}")
        packed = strict.read(Packed, data)
        _check(packed)
    except ManifestError as error:
        raise BackendError(f"{path}: {error}; build the target again with `nextscale build ... --force`") from error
    except OSError as error:
        raise BackendError(f"{path} cannot be read: {error.strerror or error}") from error
    return packed


def write(folder: Path, packed: Packed) -> None:
    """The manifest of a target, into its folder."""
    (folder / FILE_NAME).write_text(json.dumps(strict.write(packed), indent=1) + "\n", encoding="utf-8")


def differences(packed: Packed, bundle: Bundle, machine: Machine) -> Iterator[str]:
    """What a target was made of or for that is another here: then it is not to be opened."""
    manifest = bundle.manifest
    pairs = {
        "ONNX Runtime": (packed.library_version, machine.library_version),
        "the processor's instructions": (packed.instructions, machine.instructions),
        "the precision": (packed.precision, manifest.precision),
        "the weights": (packed.weights_sha256[:12], manifest.files[WEIGHTS_FILE].sha256[:12]),
    }
    for what, (built, here) in pairs.items():
        if built != here:
            yield f"{what}: {built} then, {here} now"
    built_graphs = {each.graph: each.graph_sha256 for each in packed.graphs}
    graphs = {graph.name: manifest.files[graph.file].sha256 for graph in manifest.graphs}
    if other := sorted({name for name, _ in built_graphs.items() ^ graphs.items()}):
        yield f"the graphs {', '.join(other)}"


def damage(folder: Path, packed: Packed, hashed: Collection[str]) -> str | None:
    """What is wrong with a target's files, None where they are what was written (those ``hashed`` byte by byte)."""
    folder = folder.resolve()
    try:
        for each in packed.graphs:
            check_file(folder, each.file, File(each.sha256, each.size), each.file in hashed)
        path, wanted = sized(folder, WEIGHTS, packed.weights.size), packed.weights.blake3
        if WEIGHTS in hashed and (found := weights_hash(path)) != wanted:
            return f"{path} was changed or damaged: its BLAKE3 is {found[:16]}..., not {wanted[:16]}..."
    except (BundleError, OSError) as error:
        return re.split(OF_BUNDLES, str(error))[0]
    return None


def import_blake3() -> ModuleType:
    """The module; raises :class:`BackendError` saying how to install it, also beside another ONNX Runtime."""
    install = "pip install blake3, which is in 'nextscale[cpu]'"
    return imported("blake3", "packed weights are checked by", install, BackendError)


def weights_hash(path: Path) -> str:
    """The BLAKE3 of a file, in hex."""
    digest, piece = import_blake3().blake3(), memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(piece):
            digest.update(piece[:size])
    found: str = digest.hexdigest()
    return found


def _check(packed: Packed) -> None:
    if packed.flavor != FLAVOR:
        raise ManifestError(f"flavor: expected {FLAVOR}, found {packed.flavor!r}")
    for kind in ("graph", "file"):
        names = [getattr(graph, kind) for graph in packed.graphs]
        if len(set(names)) != len(names):
            raise ManifestError(f"graphs: a {kind} stands twice in {names}")
    for i, graph in enumerate(packed.graphs):
        check_file_name(graph.file, f"graphs[{i}].file")
        if graph.file in (FILE_NAME, WEIGHTS):
            raise ManifestError(f"graphs[{i}].file: {graph.file} is no graph")
    hashes = [packed.weights_sha256, packed.weights.blake3]
    hashes += [text for graph in packed.graphs for text in (graph.graph_sha256, graph.sha256)]
    if not all(_HASH.fullmatch(text) for text in hashes):
        raise ManifestError("a hash is 64 lower-case hex digits")
