"""Checkpoints of exactly the published keys and shapes with drawn weights, for trying everything without a download.

Every tensor is drawn by its own seed, made from the checkpoint's seed and the tensor's name, so one does not depend on
which others there are. The spreads keep activations of any depth and width near one, logits near 2.5.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nextscale.export.config import FILE_NAME, entries_of
from nextscale.export.hidden import hidden_folder
from nextscale.export.models.var import VAR
from nextscale.export.models.vqvae import VQVAE
from nextscale.export.published import published_stems
from nextscale.export.state_dict import State
from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.plan.types import Grid, Model, Tokenizer

Progress = Callable[[str, int, int, str], None]
FORMATS = ("pth", "safetensors")


class Rule(NamedTuple):
    """Normal weights; ``std`` is divided by the square root of the numbers that one output sums where ``fan_in``."""

    pattern: str
    mean: float
    std: float
    fan_in: bool = False


# The first rule whose pattern is found in the key counts.
VAR_RULES = (
    Rule(r"scale_mul_1H11$", math.log(4), 0.3),
    Rule(r"head_nm\.ada_lin\.1\.bias$", 0.0, 0.2),
    Rule(r"ada_lin\.1\.bias$", 0.2, 0.1),  # gates that let a tenth to a third of every sub-layer through
    Rule(r"ada_gss$", 0.0, 0.1),
    Rule(r"ada_lin\.1\.weight$", 0.0, 0.5, fan_in=True),
    Rule(r"class_emb\.weight$", 0.0, 0.5),
    Rule(r"var:(pos_start|pos_1LC|lvl_embed\.weight)$", 0.0, 0.3),
    Rule(r"var:head\.weight$", 0.0, 2.5, fan_in=True),
    Rule(r"\.weight$", 0.0, 1.0, fan_in=True),
    Rule(r"bias$", 0.0, 0.1),
)
VAE_RULES = (
    Rule(r"norm\w*\.weight$", 1.0, 0.1),
    Rule(r"norm\w*\.bias$", 0.0, 0.1),
    Rule(r"quantize\.embedding\.weight$", 0.0, 0.7),
    Rule(r"decoder\.conv_out\.weight$", 0.0, 0.75, fan_in=True),  # pixels mostly inside [-1, 1]
    Rule(r"\.weight$", 0.0, 1.0, fan_in=True),
    Rule(r"bias$", 0.0, 0.02),
)


def draw_checkpoint(
    model: Model,
    tokenizer: Tokenizer,
    schedule: tuple[Grid, ...],
    folder: Path,
    seed: int = 0,
    form: str = "pth",
    progress: Progress = lambda stage, done, total, what: None,
) -> tuple[Path, Path]:
    """Writes the transformer's and the tokenizer's file into ``folder``, under their published names; returns both.

    What these do not tell is written into a ``config.json`` beside them. One file is in memory at a time, once.
    ``progress(stage, done, total, what)`` counts bytes. Raises :class:`InputError` when a file is already there,
    :class:`EnvironmentProblem` when the disk is too small; nothing is left behind then.
    """
    if form not in FORMATS:
        raise InputError(f"format {form!r} is unknown; known are {', '.join(FORMATS)}")
    folder = Path(folder)
    var, vae = (folder / f"{stem}.{form}" for stem in published_stems(model, tokenizer))
    config = folder / FILE_NAME  # one that is there would be read for the new files
    for path in (var, vae, config):
        if path.exists():
            raise InputError(f"{path} is already there: take another folder, or remove it first")
    parts = (
        (var, transformer_shapes(model, schedule), "var:", VAR_RULES),
        (vae, tokenizer_shapes(tokenizer, len(schedule)), "vae:", VAE_RULES),
    )
    _make_room(folder, sum(t.nbytes for _, shapes, _, _ in parts for t in shapes.values()))
    with hidden_folder(folder, "draw", f"another process is drawing into {folder}: wait for it") as hidden:
        for path, shapes, prefix, rules in parts:
            state = training_buffers(shapes, schedule)
            total = sum(t.nbytes for t in shapes.values())
            done = sum(t.nbytes for t in state.values())
            for key in [k for k in shapes if k not in state]:
                progress("draw", done, total, path.name)
                state[key] = draw(seed, prefix + key, tuple(shapes[key].shape), rules)
                done += state[key].nbytes
            progress("write", 0, 1, path.name)
            _write({key: state.pop(key) for key in shapes}, hidden / path.name)
        entries = entries_of(model, tokenizer, schedule)
        if entries:
            _write(entries, hidden / config.name)
        for path in (config, var, vae) if entries else (var, vae):
            (hidden / path.name).rename(path)
    return var, vae


def transformer_shapes(model: Model, schedule: tuple[Grid, ...]) -> State:
    """Every key of a published transformer file, training's buffers included, as tensors on the meta device."""
    length = sum(h * w for h, w in schedule)
    with torch.device("meta"):
        shapes = VAR(model, schedule).state_dict()
        shapes["lvl_1L"] = torch.empty(1, length, dtype=torch.int64)
        shapes["attn_bias_for_masking"] = torch.empty(1, 1, length, length)
        for layer in range(model.depth):
            shapes[f"blocks.{layer}.attn.zero_k_bias"] = torch.empty(model.width)
    return shapes


def tokenizer_shapes(tokenizer: Tokenizer, scales: int) -> State:
    """Every key of a published tokenizer file, encoder included, as tensors on the meta device."""
    with torch.device("meta"):
        return dict(VQVAE(tokenizer, scales).state_dict())


def training_buffers(shapes: State, schedule: tuple[Grid, ...]) -> State:
    """What training keeps in the files and inference has no use for: levels, block-causal mask, zeros."""
    levels = torch.arange(len(schedule)).repeat_interleave(torch.tensor([h * w for h, w in schedule]))
    state: State = {}
    for key, shape in shapes.items():
        if key == "lvl_1L":
            state[key] = levels[None]
        elif key == "attn_bias_for_masking":
            state[key] = torch.where(levels[:, None] >= levels[None, :], 0.0, -math.inf)[None, None]
        elif key.endswith(("zero_k_bias", "ema_vocab_hit_SV")):
            state[key] = torch.zeros(shape.shape)
    return state


def draw(seed: int, name: str, shape: tuple[int, ...], rules: tuple[Rule, ...]) -> Tensor:
    """One tensor by the first rule that its name (``var:`` or ``vae:`` and the key) falls under, float32."""
    rule = next(rule for rule in rules if re.search(rule.pattern, name))
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
    std = rule.std / math.sqrt(math.prod(shape[1:])) if rule.fan_in else rule.std
    return torch.empty(shape).normal_(rule.mean, std, generator=generator)


def _make_room(folder: Path, size: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise EnvironmentProblem(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error
    if free < size * 1.01 + 1e6:
        raise EnvironmentProblem(
            f"the checkpoint needs {size / 1e6:.0f} MB and {folder} has {free / 1e6:.0f} MB free: choose another disk"
        )


def _write(content: dict[str, Any], path: Path) -> None:
    try:
        if path.suffix == ".json":
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        elif path.suffix == ".pth":
            torch.save(content, path)
        else:
            save_file(content, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        place = path.parent.parent
        raise EnvironmentProblem(f"{place} cannot be written to ({reason}): nothing was kept") from error
