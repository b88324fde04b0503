"""The text encoder of a bundle, loaded from a published folder: weights, tokenizer and system prompt, checked together.

:mod:`nextscale.export.text_graph` makes its graph, :mod:`nextscale.export.text_verify` proves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nextscale.export.shards import files_of
from nextscale.export.state_dict import file_digest
from nextscale.export.text_encoder import TextEncoder
from nextscale.export.text_folder import (
    CONFIG_FILE,
    Sizes,
    encoder_of,
    load_weights,
    read_config,
    sizes_of,
    weights_of,
)
from nextscale.export.text_t5 import T5Sizes
from nextscale.export.text_tokenizer import read_tokenizer
from nextscale.plan.errors import InputError
from nextscale.runtime.manifest import SourceFile
from nextscale.runtime.text import TOKENIZER_FILE, TextTokenizer

WEIGHT_SET = "text"


@dataclass(frozen=True)
class LoadedText:
    """A text encoder ready for a bundle: float32, folded, in evaluation mode.

    ``tokenizer`` is the text of the bundle's ``tokenizer.json``; ``files`` are the weights that it came from.
    """

    encoder: TextEncoder
    tokenizer: str
    files: tuple[SourceFile, ...]
    folder: Path


def load_text_encoder(
    folder: Path, tokens: int, system_prompt: str | None = None, width: int | None = None
) -> LoadedText:
    """Loads a T5 encoder or a Qwen2 (Qwen2-VL) language model from a local folder, strictly; no pickle is executed.

    ``tokens`` is the length that prompts are padded to, and their limit. ``system_prompt`` stands before every prompt
    of a language model and is cut off its features again; without it, the entry ``system_prompt`` of the folder's
    ``config.json``, else none. ``width`` is that of the features which the model reads. Raises :class:`InputError` for
    what is missing, damaged or does not fit, and :class:`~nextscale.plan.errors.EnvironmentProblem` where transformers
    is not installed.
    """
    folder = Path(folder)
    if type(tokens) is not int or tokens < 2:
        raise InputError(f"prompts are padded to a whole number of tokens above 1; found {tokens!r}")
    config = read_config(folder)
    sizes, weights = sizes_of(config, folder / CONFIG_FILE), weights_of(folder)
    content = read_tokenizer(folder, config, tokens)
    tokenizer = TextTokenizer(content, folder / TOKENIZER_FILE)
    if tokenizer.vocabulary > sizes.vocabulary:
        raise InputError(
            f"the tokenizer in {folder} has ids up to {tokenizer.vocabulary - 1} and the encoder {sizes.vocabulary} "
            "rows for them: give the tokenizer that the encoder was trained with"
        )
    spoken = getattr(config, "system_prompt", None) if system_prompt is None else system_prompt
    prefix = _prefix(spoken, tokenizer, sizes, folder)
    with torch.device("meta"):
        encoder = encoder_of(sizes, tokens, prefix)
    if width is not None and encoder.width != width:
        raise InputError(
            f"the text encoder in {folder} makes features {encoder.width} wide and the model reads {width}: give the "
            "encoder that the model was trained with"
        )
    load_weights(encoder, weights)
    sources = tuple(SourceFile(WEIGHT_SET, file.name, file_digest(file)) for file in files_of(weights))
    return LoadedText(encoder.eval().requires_grad_(False).fold(), content, sources, folder)


def write_tokenizer(loaded: LoadedText, folder: Path) -> None:
    """Writes ``tokenizer.json`` into a bundle's folder."""
    (folder / TOKENIZER_FILE).write_text(loaded.tokenizer, encoding="utf-8")


def _prefix(spoken: object, tokenizer: TextTokenizer, sizes: Sizes, folder: Path) -> tuple[int, ...]:
    """The ids of a system prompt, by the tokenizer that reads prompts too."""
    if spoken is None or spoken == "":
        return ()
    if not isinstance(spoken, str):
        raise InputError(f"the system prompt of {folder} is {spoken!r:.80}: it should be a text")
    if isinstance(sizes, T5Sizes):
        raise InputError(f"a system prompt is given for {folder}, a T5 encoder: only a language model reads one")
    ids, length = tokenizer.ids_of([spoken])
    return tuple(int(i) for i in ids[0, : length[0]])
