"""Writing a bundle: into a hidden folder beside its place, proved there, then renamed whole."""

from __future__ import annotations

import copy
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import onnx
import torch
from safetensors import SafetensorError
from torch import nn

from nextscale.export.checkpoint import Checkpoint
from nextscale.export.components import compute_in
from nextscale.export.eager import Eager
from nextscale.export.graphs import DTYPES, GraphBuilder, Traced
from nextscale.export.hidden import hidden_folder
from nextscale.export.int8 import compute_in_integers
from nextscale.export.lazy import Entry
from nextscale.export.models.contract import TokenizerModel, Transformer
from nextscale.export.names import weights_of
from nextscale.export.parameters import Parameters
from nextscale.export.readers.tokenizers import IGNORED
from nextscale.export.state_dict import file_digest, fitting
from nextscale.export.text import LoadedText, write_tokenizer
from nextscale.export.text_graph import text_graph, text_tensors
from nextscale.export.text_verify import verify_text
from nextscale.export.twin import same_but_for_rounding, weights_within_a_step
from nextscale.export.verify import HERE, TOLERANCES, check_signatures, verify
from nextscale.export.weights import weight_table, write_weights
from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.plan.types import Plan
from nextscale.runtime.manifest import FILE_NAME, File, Manifest, Recipe, SourceFile, Verified, Weight, dumps
from nextscale.runtime.signatures import derive_graphs
from nextscale.runtime.text import TOKENIZER_FILE

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what
AnyModule = TypeVar("AnyModule", bound=nn.Module)

VERSIONED = ("nextscale", "torch", "onnx", "onnxscript", "onnxruntime")


CHECKS = ("numbers", "signatures")


@dataclass(frozen=True)
class Options:
    """What an export is, but for its weights; ``precision`` is fp32, fp16, bf16 or int8.

    ``check`` is ``numbers`` (every graph against the eager model) or ``signatures``: that every graph takes, gives and
    reads what it should, for models that are too large to be run here. ``text`` is the text encoder that goes along.
    """

    plan: Plan
    recipe: Recipe
    precision: str = "fp32"
    check: str = "numbers"
    text: LoadedText | None = None


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
    if options.check not in CHECKS:
        raise InputError(f"check {options.check!r} is unknown; known are {', '.join(CHECKS)}")
    if options.check == "numbers":
        checkpoint.check()  # whose values may be refused: before minutes are spent
    with publishing(out) as folder:
        weights = write_graphs(checkpoint, options, folder, progress, traced)
        verified = _verified(checkpoint, options, folder, progress, traced)
        text = options.text.files if options.text is not None else ()
        write_manifest(folder, out.name, checkpoint, options, weights, verified, text)
    return out


def _verified(
    checkpoint: Checkpoint, options: Options, folder: Path, progress: Progress, traced: Traced
) -> tuple[Verified, ...]:
    """The checks of a folder whose graphs and weights are written; all but float32 has a float32 twin for it."""
    plan, precision = options.plan, options.precision
    if options.check == "signatures":
        return check_signatures(folder, derive_graphs(plan, precision, options.text is not None))
    verified: tuple[Verified, ...] = ()
    if precision != "fp32":
        with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as name:
            twin, single = Path(name), replace(options, precision="fp32")
            write_graphs(checkpoint, single, twin, progress, traced)
            eager = prepared(checkpoint, plan, "fp32")
            verified = verify(twin, eager, "fp32", _stage(progress, "verify"), f"float32 twin on {HERE}")
            if options.text is not None:
                verified += (verify_text(twin / "text.onnx", options.text),)
            (weights_within_a_step if precision == "int8" else same_but_for_rounding)(folder, twin)
    if precision in TOLERANCES:
        how = f"float32 twin, then {HERE}" if verified else HERE
        found = verify(folder, prepared(checkpoint, plan, precision), precision, _stage(progress, "verify"), how)
        if options.text is not None:
            encoder = _sharing(options.text.encoder).compute_in(DTYPES[precision])
            found += (verify_text(folder / "text.onnx", options.text, encoder, TOLERANCES[precision]),)
        verified = found
    return verified


def write_graphs(
    checkpoint: Checkpoint, options: Options, folder: Path, progress: Progress, traced: Traced
) -> dict[str, Weight]:
    """Traces what is not traced yet, then writes the weights and every graph into ``folder``; the weights' account.

    Weights are read, derived and cast one by one: no model is in memory.
    """
    plan, precision = options.plan, options.precision
    builder = GraphBuilder(plan, precision, traced)
    composers = builder.build(_stage(progress, "trace"))
    names: set[str] = set().union(*(c.weights for c in composers))
    tensors: dict[str, Entry] = dict(weights_of(names, parameters(checkpoint, builder.var, builder.vae)))
    if options.text is not None:
        encoder = _sharing(options.text.encoder).compute_in(DTYPES[precision])
        signature = derive_graphs(plan, precision, text=True)[0]
        composers.append(text_graph(encoder, signature, traced))
        tensors |= text_tensors(composers[-1].weights, encoder)
        write_tokenizer(options.text, folder)
    room(folder, sum(t.nbytes for t in tensors.values()))
    progress("write", 0, 1, "weights")
    references = write_weights(tensors, folder)
    for composer in composers:
        onnx.save_model(composer.model(references), folder / composer.signature.file)
    return weight_table(tensors)


def parameters(checkpoint: Checkpoint, var: Transformer, vae: TokenizerModel) -> dict[str, Parameters]:
    """Every weight of a checkpoint as graphs have it; ``var`` and ``vae`` are folded and cast, with shapes alone."""
    empty_var, empty_vae = checkpoint.empty_var(), checkpoint.empty_vae()
    return {
        "var": Parameters(
            empty_var,
            var,
            fitting(empty_var, checkpoint.var_state, checkpoint.var_file, checkpoint.ignored),
            checkpoint.var_file,
        ),
        "vae": Parameters(
            empty_vae, vae, fitting(empty_vae, checkpoint.vae_state, checkpoint.vae_file, IGNORED), checkpoint.vae_file
        ),
    }


def final(checkpoint: Checkpoint, precision: str) -> tuple[Transformer, TokenizerModel]:
    """A checkpoint's models as graphs have them, folded and cast, on the meta device."""
    var, vae = checkpoint.empty_var(), checkpoint.empty_vae()
    with torch.device("meta"):
        var.fold(), vae.fold()
    compute_in(var, vae, DTYPES[precision])
    return var, vae


def write_manifest(
    folder: Path,
    name: str,
    checkpoint: Checkpoint,
    options: Options,
    weights: dict[str, Weight],
    verified: tuple[Verified, ...],
    text: tuple[SourceFile, ...] = (),
) -> None:
    """The manifest of a folder whose other files are complete; ``text`` are those that its text encoder came from."""
    source = replace(checkpoint.source, files=(*checkpoint.source.files, *text))
    manifest = Manifest(
        name=name,
        recipe=options.recipe,
        precision=options.precision,
        plan=options.plan,
        graphs=derive_graphs(options.plan, options.precision, bool(text)),
        files=listed(folder),
        weights=weights,
        versions={package: version(package) for package in VERSIONED},
        source=source,
        verified=verified,
        classes=checkpoint.class_names or None,
        tokenizer=TOKENIZER_FILE if text else None,
    )
    (folder / FILE_NAME).write_text(dumps(manifest), encoding="utf-8")


def prepared(checkpoint: Checkpoint, plan: Plan, precision: str) -> Eager:
    """The eager model as graphs have it: derived tensors folded, in the precision that is exported.

    The checkpoint stays as it was loaded; tensors that need no cast are shared with it.
    """
    var, vae = _sharing(checkpoint.var).fold(), _sharing(checkpoint.vae).fold()
    compute_in(var, vae, DTYPES[precision])
    if precision == "int8":
        compute_in_integers(var)
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
    made = [folder for folder in (out.parent, *out.parent.parents) if not folder.exists()]
    try:
        with reported(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            busy = f"another export is writing {out}: wait for it, or take another name"
            with hidden_folder(out.parent, out.name, busy) as hidden:
                yield hidden
                _sync(hidden)
                hidden.rename(out)
    finally:
        for folder in made:  # the innermost first, while they are empty
            with suppress(OSError):
                folder.rmdir()


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
