"""The bundle of a fine-tune: new weights and derived tensors behind the same graphs; nothing is traced."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from nextscale.export.bundle import Options, Progress, prepared, publishing, room, write_manifest
from nextscale.export.checkpoint import Checkpoint, load_checkpoint
from nextscale.export.config import config_beside
from nextscale.export.extract import extract_tokenizer
from nextscale.export.names import tensors_of
from nextscale.export.verify import TOLERANCES, verify
from nextscale.export.weights import header_of, weight_table, write_weights
from nextscale.plan.errors import InputError
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE, Manifest

NOT_RUN = "not run with these weights: the same graphs as of a bundle whose float32 twin was verified"


def reweight(bundle: Path, model: Path, vae: Path | None, out: Path, progress: Progress) -> Path:
    """Publishes ``out``: the graphs of ``bundle`` with the weights of other checkpoint files.

    ``vae`` is None where the fine-tune left the tokenizer as it was. The files must be of the bundle's architecture:
    equal sizes and schedule give an equal layout of the weights file, which is what the graphs refer to. Every graph is
    verified again, as after an export, but for bfloat16's, which the CPU cannot run and whose manifest says so.
    Raises :class:`InputError` where the architectures differ.
    """
    old = open_bundle(bundle).manifest
    plan = old.plan
    checkpoint = _fine_tune(bundle, old, model, vae)
    for what, new, was in (
        ("transformer", checkpoint.model, plan.model()),
        ("tokenizer", checkpoint.tokenizer, plan.tokenizer),
    ):
        if new != was:
            raise InputError(
                f"the {what} of {(vae if what == 'tokenizer' and vae else model).name} is {new}, the bundle was "
                f"exported for {was}: export the fine-tune by itself"
            )
    with publishing(out) as folder:
        eager = prepared(checkpoint, plan, old.precision)
        tensors = tensors_of(old.weights, eager.var, eager.vae)
        room(folder, sum(t.nbytes for t in tensors.values()))
        progress("write", 0, 1, "weights")
        write_weights(tensors, folder)
        if header_of(folder / WEIGHTS_FILE) != header_of(bundle / WEIGHTS_FILE):
            raise InputError(f"{bundle} was written with another layout of its weights: export the fine-tune by itself")
        for graph in old.graphs:
            shutil.copyfile(bundle / graph.file, folder / graph.file)
        verified = tuple(replace(v, how=NOT_RUN, max_error=None, tolerance=None) for v in old.verified)
        if old.precision in TOLERANCES:
            verified = verify(folder, eager, old.precision, lambda d, t, what: progress("verify", d, t, what))
        options = Options(plan, old.recipe, old.precision)
        write_manifest(folder, out.name, checkpoint, options, weight_table(tensors), verified)
    return out


def _fine_tune(bundle: Path, old: Manifest, model: Path, vae: Path | None) -> Checkpoint:
    """The new checkpoint; what tensors do not tell, and a tokenizer that is not given, are the bundle's."""
    plan = old.plan
    config = replace(
        config_beside(Path(model)),
        schedule=plan.schedule,
        heads=plan.model().heads,
        norm_groups=plan.tokenizer.norm_groups,
    )
    config = replace(config, class_names=config.class_names or old.classes or ())
    if vae is not None:
        return load_checkpoint(model, vae, config=config)
    with TemporaryDirectory(prefix="nextscale-", ignore_cleanup_errors=True) as folder:
        checkpoint = load_checkpoint(model, extract_tokenizer(bundle, Path(folder)), config=config)
    kept = [file for file in old.source.files if file.weight_set == "vae"]
    new = [file for file in checkpoint.source.files if file.weight_set != "vae"]
    return replace(checkpoint, source=replace(checkpoint.source, files=(*new, *kept)))
