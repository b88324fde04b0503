"""The bundle of a fine-tune: new weights and derived tensors behind the same graphs; nothing is traced."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from nextscale.export import safetensors_file
from nextscale.export.bundle import Options, Progress, final, parameters, prepared, publishing, room, write_manifest
from nextscale.export.checkpoint import Checkpoint, checkpoint_for
from nextscale.export.config import config_beside
from nextscale.export.extract import extract_tokenizer
from nextscale.export.lazy import Lazy
from nextscale.export.names import weights_of
from nextscale.export.safetensors_file import header_of
from nextscale.export.verify import TOLERANCES, check_signatures, verify
from nextscale.export.weights import weight_table, write_weights
from nextscale.plan.errors import InputError
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE, Manifest

NOT_RUN = "not run with these weights: the same graphs as of a bundle whose float32 twin was verified"


def reweight(bundle: Path, model: Path, vae: Path | None, out: Path, progress: Progress) -> Path:
    """Publishes ``out``: the graphs of ``bundle`` with the weights of other checkpoint files.

    ``vae`` is None where the fine-tune left the tokenizer as it was. The files must be of the bundle's architecture:
    equal sizes and schedule give an equal layout of the weights file, which is what the graphs refer to. Every graph is
    verified again, as it was after the export, but for bfloat16's, which the CPU cannot run and whose manifest says so.
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
        encoder = [name for name in old.weights if name.removeprefix("derived/").startswith("text/")]  # stays as it was
        ours, there = set(old.weights).difference(encoder), safetensors_file.entries(bundle / WEIGHTS_FILE)
        tensors = weights_of(ours, parameters(checkpoint, *final(checkpoint, old.precision)))
        tensors |= {name: there[name] for name in encoder}
        room(folder, sum(t.nbytes for t in tensors.values()))
        progress("write", 0, 1, "weights")
        write_weights(tensors, folder)
        if header_of(folder / WEIGHTS_FILE) != header_of(bundle / WEIGHTS_FILE):
            raise InputError(f"{bundle} was written with another layout of its weights: export the fine-tune by itself")
        for name in (*(graph.file for graph in old.graphs), *filter(None, [old.tokenizer])):
            shutil.copyfile(bundle / name, folder / name)
        run = [v for v in old.verified if v.max_error is not None]
        verified = tuple(replace(v, how=NOT_RUN, max_error=None, tolerance=None) for v in run if v.graph != "text")
        if not run:  # nor were the old weights: the same is checked of the new ones
            verified = check_signatures(folder, old.graphs)
        elif old.precision in TOLERANCES:
            eager = prepared(checkpoint, plan, old.precision)
            verified = verify(folder, eager, old.precision, lambda d, t, what: progress("verify", d, t, what))
        verified += tuple(v for v in run if v.graph == "text")
        options, text = (
            Options(plan, old.recipe, old.precision),
            [f for f in old.source.files if f.weight_set == "text"],
        )
        write_manifest(folder, out.name, checkpoint, options, weight_table(tensors), verified, tuple(text))
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
        return checkpoint_for(model, vae, plan, config)
    with TemporaryDirectory(prefix="nextscale-", ignore_cleanup_errors=True) as folder:
        extracted = extract_tokenizer(bundle, Path(folder))
        checkpoint = checkpoint_for(model, extracted, plan, config)
        read = {key: Lazy.of(Lazy.of(entry).read()) for key, entry in checkpoint.vae_state.items()}  # the file goes
        checkpoint = replace(checkpoint, vae_state=read)
    kept = [file for file in old.source.files if file.weight_set == "vae"]
    new = [file for file in checkpoint.source.files if file.weight_set != "vae"]
    return replace(checkpoint, source=replace(checkpoint.source, files=(*new, *kept)))
