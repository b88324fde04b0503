"""Graphs for this processor over one file of weights, in which each weight lies once as it is and once as packed.

ONNX Runtime writes what it packs when it saves a graph that it has optimised, and maps it when that graph is opened:
so sessions that name one file share its pages, within a process and between processes. It writes a file per graph; what
lies in several of them is put into the common file once, and a graph whose weights are all there is not packed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from nextscale.runtime.backends.packed import onnx_file
from nextscale.runtime.backends.packed.target import WEIGHTS
from nextscale.runtime.bundle import Bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.manifest import Graph

ALIGNMENT = 65536  # of blobs: what every system maps
GROWN = 2**21  # bytes: a graph that optimising made so much longer holds weights that were folded
INLINE = 1024  # bytes; what is smaller stays in its graph
_CHUNK = 1 << 24

Entries = dict[str, str]  # what an initializer says of its place: location, offset, length, prepacked_0, ...


class Packing:
    """Fills ``folder`` with the graphs of ``bundle`` and the file of their weights, graph by graph.

    A context manager; the file is whole when it is left.
    """

    def __init__(self, ort: ModuleType, bundle: Bundle, folder: Path) -> None:
        self._ort, self._bundle, self._folder = ort, bundle, folder
        self._blobs = Blobs(folder / WEIGHTS)
        # A weight and the kinds of nodes that read it (they pack it) -> where it lies; None: only in the bundle yet.
        self._known: dict[tuple[str, frozenset[str]], Entries | None] = {}

    def __enter__(self) -> Packing:
        return self

    def __exit__(self, *error: object) -> None:
        self._blobs.close()

    def add(self, graph: Graph) -> Path:
        """One graph, as it is to be opened: optimised, its weights in the common file."""
        path = self._bundle.path(graph.file)
        source = onnx_file.read(path)
        readers = onnx_file.consumers(source)
        weights = {
            tensor.name: (entries, readers.get(tensor.name, frozenset()))
            for tensor, entries in onnx_file.external(source)
        }
        out = self._folder / graph.file
        known = all((name, kinds) in self._known for name, (_, kinds) in weights.items())
        if known:
            self._take(source, weights, out)
        if not known or out.stat().st_size > path.stat().st_size + GROWN:
            self._pack(path, weights, out)
        return out

    def _pack(self, path: Path, weights: Mapping[str, tuple[Entries, frozenset[str]]], out: Path) -> None:
        """Have ONNX Runtime optimise and pack a graph, and keep of its file what is not there yet."""
        own = out.with_suffix(".bin")
        self._save(
            path,
            out,
            {
                "session.optimized_model_external_initializers_file_name": own.name,
                "session.optimized_model_external_initializers_min_size_in_bytes": str(INLINE),
                "session.save_external_prepacked_constant_initializers": "1",
            },
        )
        model, placed = onnx_file.read(out), dict[str, Entries]()
        if own.exists():  # not where every weight is small
            with own.open("rb") as file:
                for tensor, entries in onnx_file.external(model):
                    there = {key: self._keep(file, key, value, entries) for key, value in entries.items()}
                    onnx_file.relocate(tensor, there)
                    if tensor.name in weights and self._same(file, entries, weights[tensor.name][0]):
                        placed[tensor.name] = there
            own.unlink()
        onnx_file.write(out, model)
        for name, (_, kinds) in weights.items():
            self._known[name, kinds] = placed.get(name)

    def _take(self, source: Any, weights: Mapping[str, tuple[Entries, frozenset[str]]], out: Path) -> None:
        """Optimise a graph whose weights are all there."""
        places = {name: self._place(name, entries, kinds) for name, (entries, kinds) in weights.items()}
        for tensor, _ in onnx_file.external(source):
            onnx_file.relocate(tensor, places[tensor.name])
        given = out.with_suffix(".source.onnx")
        onnx_file.write(given, source)
        self._blobs.flush()
        self._save(given, out, {"session.disable_prepacking": "1"})
        given.unlink()
        for tensor, entries in onnx_file.external(onnx_file.read(out)):
            if entries != places.get(tensor.name):
                raise BackendError(f"ONNX Runtime {self._ort.__version__} moved {tensor.name} of {out.name}")

    def _place(self, name: str, entries: Entries, kinds: frozenset[str]) -> Entries:
        found = self._known[name, kinds]
        if found is None:
            with self._bundle.path(entries["location"]).open("rb") as file:
                offset = self._blobs.put(file, int(entries["offset"]), int(entries["length"]))
            found = {"location": WEIGHTS, "offset": str(offset), "length": entries["length"]}
            self._known[name, kinds] = found
        return found

    def _save(self, path: Path, out: Path, entries: Mapping[str, str]) -> None:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, once
        options.enable_cpu_mem_arena = False  # give back what packing took
        options.enable_mem_reuse = False  # nothing runs here: do not plan for it
        options.optimized_model_filepath = str(out)
        for key, value in entries.items():
            options.add_session_config_entry(key, value)
        self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _keep(self, file: BinaryIO, key: str, value: str, entries: Entries) -> str:
        """The value of an entry of ONNX Runtime's own file, for the common one."""
        if key == "location":
            return WEIGHTS
        if key == "offset":
            return str(self._blobs.put(file, int(value), int(entries["length"])))
        if key.startswith("prepacked_"):  # name|offset;length;checksum|...
            name, *parts = value.split("|")
            return "|".join([name, *(self._keep_part(file, part) for part in parts)])
        return value

    def _keep_part(self, file: BinaryIO, part: str) -> str:
        offset, length, *rest = part.split(";")
        return ";".join([str(self._blobs.put(file, int(offset), int(length))), length, *rest])

    def _same(self, file: BinaryIO, entries: Entries, given: Entries) -> bool:
        """Whether an initializer of the optimised graph is the bundle's weight of that name, byte by byte."""
        if entries["length"] != given["length"]:
            return False
        with self._bundle.path(given["location"]).open("rb") as weights:
            here = pieces(file, int(entries["offset"]), int(entries["length"]))
            there = pieces(weights, int(given["offset"]), int(given["length"]))
            return all(a == b for a, b in zip(here, there, strict=True))


class Blobs:
    """A file of blobs, each there once whatever how often it is put."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._there: dict[tuple[int, bytes], int] = {}

    def put(self, source: BinaryIO, offset: int, length: int) -> int:
        """Where those bytes of ``source`` lie in the file."""
        digest = hashlib.sha256()
        for piece in pieces(source, offset, length):
            digest.update(piece)
        key = length, digest.digest()
        if key not in self._there:
            self._file.seek(0, 2)
            at = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT if length >= ALIGNMENT else self._file.tell() + 63 & ~63
            self._file.write(bytes(at - self._file.tell()))
            for piece in pieces(source, offset, length):
                self._file.write(piece)
            self._there[key] = at
        return self._there[key]

    def flush(self) -> None:
        """Let others read what was put."""
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def pieces(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    """Those bytes of a file, some at a time; raises :class:`BackendError` where the file is shorter."""
    file.seek(offset)
    while length:
        piece = file.read(min(length, _CHUNK))
        if not piece:
            raise BackendError(f"{file.name} ends before the weights that it should hold")
        length -= len(piece)
        yield piece
