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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nextscale.export import safetensors_file
from nextscale.export.config import FILE_NAME
from nextscale.export.families import tokenizer_model, transformer
from nextscale.export.hidden import hidden_folder
from nextscale.export.lazy import Lazy
from nextscale.export.published import Place, published_places
from nextscale.export.readers.registry import READERS
from nextscale.export.shards import write_folder
from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.plan.types import Grid, Model, Tokenizer

Progress = Callable[[str, int, int, str], None]
FORMATS = ("pth", "safetensors")
BLOCKS = re.compile(r"(blocks|block_chunks)\.")


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
    Rule(r"(ada_lin|adaLN_modulation)\.1\.bias$", 0.2, 0.1),  # gates that let a tenth to a third of a sub-layer through
    Rule(r"ada_gss$", 0.0, 0.1),
    Rule(r"(ada_lin|adaLN_modulation)\.1\.weight$", 0.0, 0.5, fan_in=True),
    Rule(r"class_emb\.weight$", 0.0, 0.5),
    Rule(r"var:(pos_start|pos_1LC|lvl_embed\.weight)$", 0.0, 0.3),
    Rule(r"(norm|ln_wo_grad|in_ln)\.weight$", 1.0, 0.1),
    Rule(r"(cfg_uncond|mat_q)$", 0.0, 1.0),  # in the place of a text, and the one query that pools it
    Rule(r"var:head\.weight$", 0.0, 2.5, fan_in=True),
    Rule(r"\.weight$", 0.0, 1.0, fan_in=True),
    Rule(r"bias$", 0.0, 0.1),
)
VAE_RULES = (
    Rule(r"norm\w*\.weight$", 1.0, 0.1),
    Rule(r"norm\w*\.bias$", 0.0, 0.1),
    Rule(r"quantize\.embedding\.weight$", 0.0, 0.7),
    Rule(r"decoder\.conv_out\.(conv\.)?weight$", 0.0, 0.75, fan_in=True),  # pixels mostly inside [-1, 1]
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
    dtype: torch.dtype = torch.float32,
) -> tuple[Path, Path]:
    """Writes the transformer and the tokenizer into ``folder``, under their published names; returns both paths.

    What these do not tell is written into a ``config.json`` beside them. ``form`` is that of files; what upstream
    publishes as a folder is a folder of safetensors shards, whatever it says. ``dtype`` is that of the transformer's
    blocks, all else is float32. Of safetensors one tensor is in memory at a time, of ``.pth`` one file.
    ``progress(stage, done, total, what)`` counts bytes. Raises :class:`InputError` when something is already there,
    :class:`EnvironmentProblem` when the disk is too small; nothing is left behind then.
    """
    if form not in FORMATS:
        raise InputError(f"format {form!r} is unknown; known are {', '.join(FORMATS)}")
    folder = Path(folder)
    places = published_places(model, tokenizer)
    var, vae = (folder / (place.stem if place.folder else f"{place.stem}.{form}") for place in places)
    config = folder / FILE_NAME  # one that is there would be read for the new files
    for path in (var, vae, config):
        if path.exists():
            raise InputError(f"{path} is already there: take another folder, or remove it first")
    parts = (
        drawn(transformer_shapes(model, schedule), "var:", VAR_RULES, seed, levels_of(model, schedule), dtype),
        drawn(tokenizer_shapes(tokenizer, len(schedule)), "vae:", VAE_RULES, seed),
    )
    _make_room(folder, sum(t.nbytes for tensors in parts for t in tensors.values()))
    entries = READERS[model.family].entries_of(model, tokenizer, schedule)
    with hidden_folder(folder, "draw", f"another process is drawing into {folder}: wait for it") as hidden:
        for path, place, tensors in zip((var, vae), places, parts, strict=True):
            _write(_counted(tensors, progress, path.name), place, hidden / path.name, progress)
        if entries:
            inside = hidden / var.name if places[0].folder else hidden
            with _reported(folder):
                (inside / FILE_NAME).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        for path in (config, var, vae):
            if (hidden / path.name).exists():
                (hidden / path.name).rename(path)
    return var, vae


def transformer_shapes(model: Model, schedule: tuple[Grid, ...]) -> dict[str, Tensor]:
    """Every key of a published transformer file, training's buffers included, as tensors on the meta device."""
    levels = levels_of(model, schedule)
    with torch.device("meta"):
        shapes = dict(transformer(model, schedule).state_dict())
        if levels is not None:
            shapes["lvl_1L"] = torch.empty(1, len(levels), dtype=torch.int64)
            shapes["attn_bias_for_masking"] = torch.empty(1, 1, len(levels), len(levels))
        for key in [key for key in shapes if key.endswith(".v_bias")]:
            shapes[key.removesuffix("v_bias") + "zero_k_bias"] = torch.empty(shapes[key].shape)
    return shapes


def tokenizer_shapes(tokenizer: Tokenizer, scales: int) -> dict[str, Tensor]:
    """Every key of a published tokenizer file, encoder included, as tensors on the meta device."""
    with torch.device("meta"):
        shapes = dict(tokenizer_model(tokenizer, scales).state_dict())
        if not tokenizer.codebook:
            for name in ("quantizer", "quantize"):
                shapes[f"{name}.lfq.mask"] = torch.empty(tokenizer.code_channels, dtype=torch.int64)
    return shapes


def levels_of(model: Model, schedule: tuple[Grid, ...]) -> Tensor | None:
    """The scale of each token (L,) that training keeps in the file; None for a model whose blocks attend to a text."""
    lengths = [h * w for h, w in schedule]
    if model.text is not None:
        if model.text.use != "prefix":
            return None
        lengths[0] = model.text.tokens
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def drawn(
    shapes: Mapping[str, Tensor],
    prefix: str,
    rules: tuple[Rule, ...],
    seed: int,
    levels: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Lazy]:
    """The tensors of a file by their shapes, none of them drawn yet; floats of blocks in ``dtype``."""

    def tensor(key: str, shape: Tensor) -> Lazy:
        kind = dtype if BLOCKS.match(key) and shape.is_floating_point() else shape.dtype

        def make() -> Tensor:
            buffer = training_buffer(key, shape, levels)
            values = draw(seed, prefix + key, tuple(shape.shape), rules) if buffer is None else buffer
            return values.to(kind)

        return Lazy(shape.shape, kind, make)

    return {key: tensor(key, shape) for key, shape in shapes.items()}


def training_buffer(key: str, shape: Tensor, levels: Tensor | None) -> Tensor | None:
    """What training keeps in the files and inference has no use for: levels, block-causal mask, powers of two, zeros.

    None for a weight.
    """
    if key == "lvl_1L" and levels is not None:
        return levels[None]
    if key == "attn_bias_for_masking" and levels is not None:
        return torch.where(levels[:, None] >= levels[None, :], 0.0, -math.inf)[None, None]
    if key.endswith("lfq.mask"):
        return 2 ** torch.arange(len(shape) - 1, -1, -1)
    if key.endswith(("zero_k_bias", "ema_vocab_hit_SV")):
        return torch.zeros(shape.shape)
    return None


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


def _counted(tensors: Mapping[str, Lazy], progress: Progress, what: str) -> dict[str, Lazy]:
    """The same tensors, which tell how many bytes were drawn before each."""
    total, done = sum(t.nbytes for t in tensors.values()), 0

    def counting(tensor: Lazy) -> Lazy:
        def make() -> Tensor:
            nonlocal done
            progress("draw", done, total, what)
            done += tensor.nbytes
            return tensor.read()

        return Lazy(tensor.shape, tensor.dtype, make)

    return {key: counting(tensor) for key, tensor in tensors.items()}


def _write(tensors: Mapping[str, Lazy], place: Place, path: Path, progress: Progress) -> None:
    """A file or a folder as upstream lays it out."""
    tensors = {place.prefix + key: tensor for key, tensor in tensors.items()}
    state = {key: tensor.read() for key, tensor in tensors.items()} if path.suffix == ".pth" else None
    with _reported(path.parent.parent):
        if place.folder:
            write_folder(path, tensors)
        elif state is None:
            safetensors_file.write(path, tensors)
        else:
            progress("write", 0, 1, path.name)
            torch.save({place.within: state} if place.within else state, path)
            with path.open("rb+") as file:
                os.fsync(file.fileno())


@contextmanager
def _reported(place: Path) -> Iterator[None]:
    """A disk that fails in one sentence; PyTorch's own writer raises a RuntimeError for it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise EnvironmentProblem(f"{place} cannot be written to ({reason}): nothing was kept") from error
