"""From checkpoint files to models: sizes are read from the tensors, the tensors strictly by their published keys.

A checkpoint is opened without its tensors. They are read whole for the eager model, or one by one for an export of a
model that is too large for that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from nextscale.export.config import Config, config_beside
from nextscale.export.families import tokenizer_model, transformer
from nextscale.export.lazy import Lazy
from nextscale.export.models.contract import TokenizerModel, Transformer
from nextscale.export.readers.registry import reader_of
from nextscale.export.readers.tokenizers import ENCODER_KEYS, IGNORED, encoder_blocks_of, tokenizer_of
from nextscale.export.shards import files_of
from nextscale.export.state_dict import State, file_digest, fitting, load_strictly, open_state, read_floats
from nextscale.plan.errors import InputError
from nextscale.plan.ratios import rope_grid
from nextscale.plan.types import Grid, Model, Plan, Tokenizer
from nextscale.runtime.manifest import Source, SourceFile

# Of hub repositories whose licence is known.
LICENCES = {"FoundationVision/var": "MIT", "FoundationVision/infinity": "MIT", "mit-han-lab/hart-0.7b-1024px": "MIT"}


@dataclass(frozen=True)
class Checkpoint:
    """A transformer and its tokenizer in files: their sizes, and their tensors when they are asked for.

    ``encoder`` says that the picture encoder is loaded too.
    """

    model: Model
    tokenizer: Tokenizer
    schedule: tuple[Grid, ...]
    source: Source
    var_file: Path
    vae_file: Path
    var_state: State
    vae_state: State
    ignored: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    encoder: bool = False

    @cached_property
    def var(self) -> Transformer:
        """The transformer, float32, in evaluation mode; read now, and kept."""
        model = self.empty_var()
        load_strictly(model, self.var_state, self.var_file, self.ignored)
        return model.eval().requires_grad_(False)

    @cached_property
    def vae(self) -> TokenizerModel:
        """The tokenizer, likewise."""
        model = self.empty_vae()
        load_strictly(model, self.vae_state, self.vae_file, IGNORED)
        if not self.encoder:
            model.drop_encoder()
        return model.eval().requires_grad_(False)

    def check(self) -> None:
        """Reads every tensor once, one at a time; :class:`InputError` where a value is NaN or infinite."""
        for model, state, path, ignored in (
            (self.empty_var(), self.var_state, self.var_file, self.ignored),
            (self.empty_vae(), self.vae_state, self.vae_file, IGNORED),
        ):
            for key, entry in fitting(model, state, path, ignored).items():
                read_floats(entry, key, path)

    def empty_var(self) -> Transformer:
        """The transformer on the meta device."""
        with torch.device("meta"):
            return transformer(self.model, self.schedule)

    def empty_vae(self) -> TokenizerModel:
        """The tokenizer on the meta device; with an encoder where the file has one, which is checked in any case."""
        holds_encoder = self.encoder or any(key.startswith(ENCODER_KEYS) for key in self.vae_state)
        with torch.device("meta"):
            return tokenizer_model(self.tokenizer, len(self.schedule), encoder_blocks_of(self.vae_state), holds_encoder)


def load_checkpoint(
    model: Path,
    vae: Path,
    schedule: tuple[Grid, ...] | None = None,
    encoder: bool = False,
    repo: str | None = None,
    revision: str | None = None,
    config: Config | None = None,
    usual: tuple[Grid, ...] | None = None,
    text_tokens: int | None = None,
) -> Checkpoint:
    """Opens a transformer file (or a folder of shards) and a tokenizer file, strictly by their published keys.

    ``schedule`` overrides what the files say; ``usual`` takes its place where they say nothing. ``encoder`` loads the
    picture encoder too; one that lies in the file is checked in any case. ``config`` takes the place of the
    ``config.json`` beside the transformer's file. ``text_tokens`` is the longest text that a model which attends to
    texts is made for; None is what it was trained for.
    Raises :class:`InputError` where a key is missing, unexpected or misshapen; values are looked at when they are read.
    """
    model, vae = Path(model), Path(vae)
    config = config or config_beside(model)
    var_state, vae_state = open_state(model, "var"), open_state(vae, "vae")
    reader = reader_of(var_state)
    sizes = reader.model_of(var_state, config, model)
    tokenizer = tokenizer_of(vae_state, config, vae)
    grids = schedule or reader.schedule_of(var_state, config, model) or usual
    if grids is None:
        raise InputError(f"{model} serves every schedule and names none: give --schedule")
    sizes, tokenizer = _together(sizes, tokenizer, grids, model, vae)
    if tokenizer.codebook:  # a statistic of training, of another schedule's length perhaps; upstream replaces it too
        hits = torch.zeros(len(grids), tokenizer.vocabulary)
        vae_state = {**vae_state, "quantize.ema_vocab_hit_SV": Lazy.of(hits)}
    files = tuple(
        SourceFile(part, file.name, file_digest(file))
        for part, path in (("var", model), ("vae", vae))
        for file in files_of(path)
    )
    if config.class_names and len(config.class_names) != sizes.classes:
        raise InputError(f"{config.path} names {len(config.class_names)} classes and {model} has {sizes.classes}")
    opened = Checkpoint(
        _shorter(sizes, text_tokens),
        tokenizer,
        grids,
        Source(files, repo, revision, config.licence or LICENCES.get(repo or "")),
        model,
        vae,
        var_state,
        vae_state,
        reader.IGNORED,
        config.class_names,
        encoder,
    )
    fitting(opened.empty_var(), var_state, model, reader.IGNORED)
    fitting(opened.empty_vae(), vae_state, vae, IGNORED)
    return opened


def checkpoint_for(model: Path, vae: Path, plan: Plan, config: Config | None = None) -> Checkpoint:
    """The files of a plan that was made of such ones: for its schedule, and for texts as long as it takes."""
    text = plan.model().text
    tokens = text.tokens if text is not None and text.use == "cross" else None
    return load_checkpoint(model, vae, plan.schedule, config=config, text_tokens=tokens)


def _together(
    model: Model, tokenizer: Tokenizer, schedule: tuple[Grid, ...], path: Path, vae: Path
) -> tuple[Model, Tokenizer]:
    """What neither file tells alone: latents of a token, and the grid that rotary positions count on."""
    if not tokenizer.codebook:
        for patch in range(1, 9):
            if model.bits == patch * patch * tokenizer.code_channels:
                tokenizer = replace(tokenizer, patch=patch)
    channels = tokenizer.code_channels * tokenizer.patch**2
    if (model.vocabulary, model.code_channels) != (tokenizer.vocabulary, channels):
        raise InputError(
            f"{path} predicts {model.vocabulary} codes of {model.code_channels} channels and {vae} holds "
            f"{tokenizer.vocabulary} of {channels}: give the tokenizer that the model was trained with"
        )
    if model.rope == "grid" and model.rope_grid is None:
        model = replace(model, rope_grid=rope_grid(schedule))
    return model, tokenizer


def _shorter(model: Model, tokens: int | None) -> Model:
    """The model for texts of up to so many tokens."""
    if tokens is None:
        return model
    if model.text is None or model.text.use != "cross":
        raise InputError(f"texts of {tokens} tokens are asked for, and the model attends to none of any length")
    if not 2 <= tokens <= model.text.tokens:
        raise InputError(f"texts of {tokens} tokens are asked for; the model knows 2 to {model.text.tokens}")
    return replace(model, text=replace(model.text, tokens=tokens))
