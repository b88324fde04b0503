"""The tokenizer of a published text encoder as one file for a bundle, which says by itself how it pads."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextscale.export.text_folder import CONFIG_FILE, first_line, import_transformers
from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.runtime.text import TOKENIZER_FILE, import_tokenizers

SETTINGS_FILE = "tokenizer_config.json"
SENTENCEPIECE_FILE = "spiece.model"


def read_tokenizer(folder: Path, config: Any, tokens: int) -> str:
    """The tokenizer as one JSON text: it pads to ``tokens`` ids, on the right, and cuts nothing off.

    ``tokenizer.json`` as it is published; where there is none, transformers makes it of ``spiece.model`` or of the
    vocabulary and merges.
    """
    tokenizers = import_tokenizers()
    path = folder / TOKENIZER_FILE
    if path.is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing more special
            raise InputError(f"{path} cannot be read as a tokenizer ({first_line(error)}): fetch it again") from error
    else:
        tokenizer = _converted(folder)
    settings = _json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else {}
    if settings.get("padding_side", "right") != "right":
        raise InputError(
            f"{folder / SETTINGS_FILE} pads on the side {settings['padding_side']!r}: prompts are padded on "
            "the right here, so this encoder's features would stand in other places"
        )
    pad = _pad_id(tokenizer, settings, config)
    if pad is None:
        raise InputError(f"{folder} names no padding token: give pad_token in {SETTINGS_FILE}")
    tokenizer.no_truncation()
    tokenizer.enable_padding(direction="right", pad_id=pad, pad_token=tokenizer.id_to_token(pad), length=tokens)
    return str(tokenizer.to_str())


def _converted(folder: Path) -> Any:
    """What transformers makes of the files of an older tokenizer."""
    transformers = import_transformers()
    if (folder / SENTENCEPIECE_FILE).is_file():
        _need_sentencepiece(folder)
    elif not (folder / "vocab.json").is_file():
        raise InputError(
            f"{folder} has no tokenizer: {TOKENIZER_FILE} or {SENTENCEPIECE_FILE} belongs beside {CONFIG_FILE}"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True
        ).backend_tokenizer
    except Exception as error:  # converters raise whatever their parsers do
        raise InputError(
            f"the tokenizer in {folder} cannot be converted ({first_line(error)}): fetch it again"
        ) from error


def _need_sentencepiece(folder: Path) -> None:
    try:
        importlib.import_module("sentencepiece")
    except ImportError as error:
        raise EnvironmentProblem(
            f"{folder / SENTENCEPIECE_FILE} is read with the package sentencepiece, which does not import here "
            f"({error}): pip install 'nextscale[text-export]'"
        ) from error


def _pad_id(tokenizer: Any, settings: Mapping[str, Any], config: Any) -> int | None:
    """The id that prompts are padded with: the tokenizer's, else the model's."""
    named = settings.get("pad_token")
    named = named.get("content") if isinstance(named, dict) else named
    pad = tokenizer.token_to_id(named) if isinstance(named, str) else getattr(config, "pad_token_id", None)
    return pad if isinstance(pad, int) and tokenizer.id_to_token(pad) is not None else None


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): mend it or fetch it again") from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path} does not hold a JSON object: mend it or fetch it again")
    return loaded
