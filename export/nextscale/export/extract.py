"""A bundle's tokenizer as a checkpoint file again, for a fine-tune that left it as it was."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE

PREFIX = "vae/"


def extract_tokenizer(bundle: Path, folder: Path) -> Path:
    """Writes the bundle's tokenizer into ``folder`` under its own name, as ``.safetensors``; returns the file.

    Keys are the published ones, without the encoder, values those of the bundle in its precision. Residual convolutions
    that no scale of the bundle's schedule uses are zeros. Raises :class:`~nextscale.runtime.errors.BundleError` for a
    bundle that is damaged.
    """
    opened = open_bundle(bundle)
    with safe_open(opened.path(WEIGHTS_FILE), framework="pt") as weights:
        state = {k.removeprefix(PREFIX): weights.get_tensor(k) for k in weights.keys() if k.startswith(PREFIX)}  # noqa: SIM118
    tokenizer = opened.manifest.plan.tokenizer
    z, dtype = tokenizer.code_channels, state["quantize.embedding.weight"].dtype
    for i in range(tokenizer.phi):
        name = f"quantize.quant_resi.qresi_ls.{i}"
        state.setdefault(f"{name}.weight", torch.zeros(z, z, 3, 3, dtype=dtype))
        state.setdefault(f"{name}.bias", torch.zeros(z, dtype=dtype))
    names = [file.name for file in opened.manifest.source.files if file.weight_set == "vae"]
    path = folder / Path(names[0] if names else "vae").with_suffix(".safetensors").name
    save_file(state, path)
    return path
