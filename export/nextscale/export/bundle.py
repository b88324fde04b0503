"""Writing a bundle: into a hidden folder beside its place, proved there, then renamed whole."""

from __future__ import annotations

import copy
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import onnx
from safetensors import SafetensorError
from torch import nn

from nextscale.export.checkpoint import Checkpoint
from nextscale.export.components import compute_in
from nextscale.export.eager import Eager
from nextscale.export.graphs import DTYPES, GraphBuilder, Traced
from nextscale.export.hidden import hidden_folder
from nextscale.export.names import tensors_of
from nextscale.export.state_dict import file_digest
from nextscale.export.twin import same_but_for_rounding
from nextscale.export.verify import HERE, TOLERANCES, verify
from nextscale.export.weights import weight_table, write_weights
from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.plan.types import Plan
from nextscale.runtime.manifest import FILE_NAME, File, Manifest, Recipe, Verified, Weight, dumps
from nextscale.runtime.signatures import derive_graphs

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what
AnyModule = TypeVar("AnyModule", bound=nn.Module)

VERSIONED = ("nextscale", "torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Options:
    """What an export is, but for its weights; ``precision`` is fp32, fp16 or bf16."""

    plan: Plan
    recipe: Recipe
    precision: str = "fp32"


def export_bundle(
    checkpoint: Checkpoint, options: Options, out: Path, progress: Progress, traced: Traced | None = None
) -> Path:
    """Exports, verifies and publishes ``out``. Until the rename nothing stands at that path.

    ``traced`` may be one dict for several exports of a process: pieces that they share are traced once.
    Raises :class:`InputError` when ``out`` exists or another export is writing it,
    :class:`~nextscale.plan.errors.ParityError` when a graph does not compute what the eager model computes, and
    :class:`EnvironmentProblem` when the disk is full.
    """
    traced = {} if traced is None else traced
    with publishing(out) as folder:
        written = write_graphs(checkpoint, options.plan, options.precision, folder, progress, traced)
        twin_verified: tuple[Verified, ...] = ()
        if options.precision != "fp32":
            with TemporaryDirectory(dir=out.parent, prefix=f"{folder.name}-") as name:
                twin = Path(name)
                eager = write_graphs(checkpoint, options.plan, "fp32", twin, progress, traced).eager
                twin_verified = verify(twin, eager, "fp32", _stage(progress, "verify"), f"float32 twin on {HERE}")
                same_but_for_rounding(folder, twin)
        verified = twin_verified
        if options.precision in TOLERANCES:
            how = f"float32 twin, then {HERE}" if twin_verified else HERE
            verified = verify(folder, written.eager, options.precision, _stage(progress, "verify"), how)
        write_manifest(folder, out.name, checkpoint, options, written.weights, verified)
    return out


@dataclass(frozen=True)
class Written:
    """What is in a folder: the eager model in the precision of the graphs, and the account of the weights."""

    eager: Eager
    weights: dict[str, Weight]


def write_graphs(
    checkpoint: Checkpoint, plan: Plan, precision: str, folder: Path, progress: Progress, traced: Traced
) -> Written:
    """Traces what is not traced yet, then writes the weights and every graph into ``folder``."""
    composers = GraphBuilder(plan, precision, traced).build(_stage(progress, "trace"))
    eager = prepared(checkpoint, plan, precision)
    names: set[str] = set().union(*(c.weights for c in composers))
    tensors = tensors_of(names, eager.var, eager.vae)
    room(folder, sum(t.nbytes for t in tensors.values()))
    progress("write", 0, 1, "weights")
    references = write_weights(tensors, folder)
    for composer in composers:
        onnx.save_model(composer.model(references), folder / composer.signature.file)
    return Written(eager, weight_table(tensors))


def write_manifest(
    folder: Path,
    name: str,
    checkpoint: Checkpoint,
    options: Options,
    weights: dict[str, Weight],
    verified: tuple[Verified, ...],
) -> None:
    """The manifest of a folder whose other files are complete."""
    manifest = Manifest(
        name=name,
        recipe=options.recipe,
        precision=options.precision,
        plan=options.plan,
        graphs=derive_graphs(options.plan, options.precision),
        files=listed(folder),
        weights=weights,
        versions={package: version(package) for package in VERSIONED},
        source=checkpoint.source,
        verified=verified,
        classes=checkpoint.class_names or None,
    )
    (folder / FILE_NAME).write_text(dumps(manifest), encoding="utf-8")


def prepared(checkpoint: Checkpoint, plan: Plan, precision: str) -> Eager:
    """The eager model as graphs have it: derived tensors folded, in the precision that is exported.

    The checkpoint stays as it was loaded; tensors that need no cast are shared with it.
    """
    var, vae = _sharing(checkpoint.var).fold(), _sharing(checkpoint.vae).fold()
    compute_in(var, vae, DTYPES[precision])
    return Eager(plan, var, vae)


def _sharing(module: AnyModule) -> AnyModule:
    """A copy of a module over the same tensors."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _stage(progress: Progress, stage: str) -> Callable[[int, int, str], None]:
    return lambda done, total, what: progress(stage, done, total, what)


@contextmanager
def publishing(out: Path) -> Iterator[Path]:
    """A folder to write into; on success it becomes ``out`` in one rename, on any failure it is removed.

    What an export that was killed left behind is removed by the next one of the same name.
    """
    out = Path(out)
    if out.name in ("", ".", "..") or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", out.name):
        raise InputError(f"{out.name!r} cannot name a bundle: use letters, digits, '.', '_' and '-'")
    if out.exists():
        raise InputError(f"{out} is already there: take another name, or remove it first")
    with reported(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        busy = f"another export is writing {out}: wait for it, or take another name"
        with hidden_folder(out.parent, out.name, busy) as hidden:
            yield hidden
            _sync(hidden)
            hidden.rename(out)


@contextmanager
def reported(out: Path) -> Iterator[None]:
    """A full or forbidden disk in one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        full = full or any(words in str(error) for words in ("No space left", "File too large", "quota"))
        if full:
            free = shutil.disk_usage(out.parent).free if out.parent.is_dir() else 0
            raise EnvironmentProblem(
                f"the disk is full ({free / 1e6:.0f} MB free at {out.parent}): nothing was kept"
            ) from error
        if isinstance(error, (PermissionError, FileExistsError, NotADirectoryError)):
            raise EnvironmentProblem(f"{out.parent} cannot be written to: choose a folder that can") from error
        raise


def room(folder: Path, weights: int) -> None:
    """Refuses to start writing what cannot fit; graphs are small beside the weights."""
    needed, free = weights + 64_000_000, shutil.disk_usage(folder).free
    if free < needed:
        raise EnvironmentProblem(
            f"the bundle needs {needed / 1e6:.0f} MB and {folder.parent} has {free / 1e6:.0f} MB free"
        )


def listed(folder: Path) -> dict[str, File]:
    """Digest and size of every file in the folder."""
    return {p.name: File(file_digest(p), p.stat().st_size) for p in sorted(folder.iterdir())}


def _sync(folder: Path) -> None:
    """Has the operating system put the files on the disk before they get their name."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
