"""A bundle's tokenizer as a checkpoint file again, for a fine-tune that left it as it was."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nextscale.export.families import tokenizer_model
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE


def extract_tokenizer(bundle: Path, folder: Path) -> Path:
    """Writes the bundle's tokenizer into ``folder`` under its own name, as ``.safetensors``; returns the file.

    Keys are the published ones, without the encoder, values those of the bundle in its precision; what no graph reads
    (residual convolutions that belong to no scale) is zeros. Raises
    :class:`~nextscale.runtime.errors.BundleError` for a bundle that is damaged.
    """
    opened = open_bundle(bundle)
    table, plan = opened.manifest.weights, opened.manifest.plan
    names = {weight.keys[0]: name for name, weight in table.items() if len(weight.keys) == 1}
    with torch.device("meta"):
        wanted = tokenizer_model(plan.tokenizer, len(plan.schedule), encoder=False).state_dict()
    state = {}
    with safe_open(opened.path(WEIGHTS_FILE), framework="pt") as weights:
        for key, shape in wanted.items():
            name = names.get(f"vae/{key}")
            state[key] = weights.get_tensor(name).reshape(shape.shape) if name else torch.zeros(shape.shape)
    files = [file.name for file in opened.manifest.source.files if file.weight_set == "vae"]
    path = folder / Path(files[0] if files else "vae").with_suffix(".safetensors").name
    save_file(state, path)
    return path
