"""From checkpoint files to models: every size is read from the tensors themselves (the sheet's section 1.4)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from nextscale.export.config import Config, config_beside
from nextscale.export.models.var import VAR
from nextscale.export.models.vqvae import VQVAE
from nextscale.export.state_dict import State, file_digest, load_strictly, read_state
from nextscale.plan.errors import InputError
from nextscale.plan.schedules import SCHEDULES
from nextscale.plan.types import Grid, Model, Tokenizer
from nextscale.runtime.manifest import Source, SourceFile

# Buffers that training keeps in the file and inference has no use for.
VAR_IGNORED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")
VAE_IGNORED = ("ema_vocab_hit_SV",)
ENCODER_KEYS = ("encoder.", "quant_conv.")
LICENCES = {"FoundationVision/var": "MIT"}  # of hub repositories whose licence is known


@dataclass(frozen=True)
class Checkpoint:
    """A loaded VAR and its tokenizer, both float32 and in evaluation mode."""

    var: VAR
    vae: VQVAE
    tokenizer: Tokenizer
    schedule: tuple[Grid, ...]
    source: Source
    class_names: tuple[str, ...] = ()

    @property
    def model(self) -> Model:
        """The transformer's sizes."""
        return self.var.model


def load_checkpoint(
    model: Path,
    vae: Path,
    schedule: tuple[Grid, ...] | None = None,
    encoder: bool = False,
    repo: str | None = None,
    revision: str | None = None,
    config: Config | None = None,
) -> Checkpoint:
    """Loads a transformer file and a tokenizer file, strictly by their published keys.

    ``schedule`` overrides what the file says; it is needed only where the file has no ``lvl_1L``, no ``config.json``
    lies beside it and the number of tokens is no published schedule's. ``encoder`` loads the picture encoder too; one
    that lies in the file is checked in any case.
    ``config`` takes the place of the ``config.json`` beside the transformer's file.
    """
    config = config or config_beside(Path(model))
    var_state, vae_state = read_state(Path(model), "var"), read_state(Path(vae), "vae")
    sizes = model_of(var_state, config, Path(model))
    tokenizer = tokenizer_of(vae_state, config, Path(vae))
    grids = schedule or _schedule_of(var_state, config, Path(model))
    with torch.device("meta"):
        var = VAR(sizes, grids)
        holds_encoder = encoder or any(key.startswith(ENCODER_KEYS) for key in vae_state)
        vqvae = VQVAE(tokenizer, len(grids), encoder_blocks_of(vae_state), holds_encoder)
    load_strictly(var, var_state, Path(model), VAR_IGNORED)
    if vae_state.get("quantize.ema_vocab_hit_SV", torch.empty(0)).shape != (len(grids), tokenizer.vocabulary):
        # A training statistic of another schedule's length; upstream replaces it too.
        vae_state["quantize.ema_vocab_hit_SV"] = torch.zeros(len(grids), tokenizer.vocabulary)
    load_strictly(vqvae, vae_state, Path(vae), VAE_IGNORED)
    if holds_encoder and not encoder:
        del vqvae.encoder, vqvae.quant_conv
    if (sizes.vocabulary, sizes.code_channels) != (tokenizer.vocabulary, tokenizer.code_channels):
        raise InputError(
            f"{model} predicts {sizes.vocabulary} codes of {sizes.code_channels} channels and {vae} holds "
            f"{tokenizer.vocabulary} of {tokenizer.code_channels}: give the tokenizer that the model was trained with"
        )
    files = tuple(SourceFile(part, Path(p).name, file_digest(Path(p))) for part, p in (("var", model), ("vae", vae)))
    if config.class_names and len(config.class_names) != sizes.classes:
        raise InputError(f"{config.path} names {len(config.class_names)} classes and {model} has {sizes.classes}")
    source = Source(files, repo, revision, config.licence or LICENCES.get(repo or ""))
    return Checkpoint(
        var.eval().requires_grad_(False),
        vqvae.eval().requires_grad_(False),
        tokenizer,
        grids,
        source,
        config.class_names,
    )


def model_of(state: State, config: Config, path: Path) -> Model:
    """The transformer's sizes from its tensors; only one without ``scale_mul_1H11`` needs ``config.json`` for heads."""
    scale = state.get("blocks.0.attn.scale_mul_1H11")
    axes = {"pos_start": 3, "class_emb.weight": 2, "word_embed.weight": 2, "head.weight": 2}
    axes |= {"blocks.0.ffn.fc1.weight": 2} | ({} if scale is None else {"blocks.0.attn.scale_mul_1H11": 4})
    _need(state, axes, f"{path} is no VAR transformer", "the tokenizer's")
    width = state["pos_start"].shape[-1]
    heads = scale.shape[1] if scale is not None else config.heads or width // 64
    if heads < 1 or width % heads:
        raise InputError(f"{path} is {width} wide, which {heads} heads cannot share: give heads in a config.json")
    return Model(
        family="var",
        depth=_count(r"blocks\.(\d+)\.", state),
        width=width,
        heads=heads,
        head_dim=width // heads,
        ffn_width=state["blocks.0.ffn.fc1.weight"].shape[0],
        vocabulary=state["head.weight"].shape[0],
        code_channels=state["word_embed.weight"].shape[1],
        classes=state["class_emb.weight"].shape[0] - 1,
        qk_norm=scale is not None,
        shared_adaln="shared_ada_lin.1.weight" in state,
    )


def _schedule_of(state: State, config: Config, path: Path) -> tuple[Grid, ...]:
    """From config.json, else the level of each token, else the published schedule of that length."""
    if config.schedule:
        return config.schedule
    _need(state, {"pos_1LC": 3}, f"{path} is no VAR transformer", "the tokenizer's")
    total = state["pos_1LC"].shape[1]
    level = state.get("lvl_1L", torch.empty(0)).flatten()
    known = [grids for grids in SCHEDULES.values() if sum(h * w for h, w in grids) == total]
    if level.dtype == torch.int64 and len(level) == total and 0 <= int(level.min()) <= int(level.max()) < total:
        lengths = level.bincount().tolist()
        known = [grids for grids in known if [h * w for h, w in grids] == lengths]
        squares = tuple((math.isqrt(n), math.isqrt(n)) for n in lengths)
        if [h * w for h, w in squares] == lengths:
            return squares
    if known:
        return known[0]
    raise InputError(
        f"the schedule of {path} ({total} tokens) is not known: give --schedule, "
        "or patch_nums in a config.json beside it"
    )


def tokenizer_of(state: State, config: Config, path: Path) -> Tokenizer:
    """The tokenizer's sizes from its tensors; only the groups of its norms, where not 32, are in ``config.json``."""
    levels = _count(r"decoder\.up\.(\d+)\.", state) or 1
    axes = {"decoder.norm_out.weight": 1, "quantize.embedding.weight": 2, "post_quant_conv.weight": 4}
    axes |= {f"decoder.up.{level}.block.0.conv2.weight": 4 for level in range(levels)}
    _need(state, axes, f"{path} is no VAR tokenizer", "the transformer's")
    channels = state["decoder.norm_out.weight"].shape[0]
    if channels < 1 or channels % config.norm_groups:
        raise InputError(
            f"{path} has {channels} channels, which cannot be normed in {config.norm_groups} groups: "
            "give vae.norm_groups in a config.json beside the model"
        )
    widths = [state[f"decoder.up.{level}.block.0.conv2.weight"].shape[0] for level in range(levels)]
    vocabulary, code_channels = state["quantize.embedding.weight"].shape
    partly = len({k.split(".")[3] for k in state if k.startswith("quantize.quant_resi.qresi_ls.")})
    return Tokenizer(
        channels=channels,
        multipliers=tuple(w // channels for w in widths),
        res_blocks=_count(r"decoder\.up\.0\.block\.(\d+)\.", state),
        code_channels=code_channels,
        vocabulary=vocabulary,
        stride=2 ** (levels - 1),
        phi=partly or 4,
        norm_groups=config.norm_groups,
    )


def encoder_blocks_of(state: State) -> int:
    """Residual blocks per encoder level; the published 2 where the file has no encoder."""
    return _count(r"encoder\.down\.0\.block\.(\d+)\.", state) or 2


def _count(pattern: str, state: State) -> int:
    """How many numbers the keys have there: a layer numbered far beyond the others is not that many layers."""
    return len({m[1] for key in state if (m := re.match(pattern, key))})


def _need(state: State, axes: dict[str, int], wrong: str, other: str) -> None:
    """Refuses a state dict without the tensors that sizes are read from; they have these numbers of axes, none of 0."""
    if missing := [key for key in axes if key not in state]:
        raise InputError(f"{wrong}: it lacks {', '.join(missing)}; is it {other} file?")
    if odd := [key for key, count in axes.items() if state[key].ndim != count or not state[key].numel()]:
        shapes = ", ".join(f"{key} {tuple(state[key].shape)}" for key in odd)
        raise InputError(f"{wrong}: none has tensors of the shapes {shapes}; give the file that was trained")
