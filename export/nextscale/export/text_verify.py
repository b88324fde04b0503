"""Proving the graph ``text``: against the encoder that it was traced from, and both against transformers' own model."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.export.text import LoadedText
from nextscale.export.text_encoder import TextEncoder
from nextscale.export.text_folder import import_transformers, read_config
from nextscale.export.text_graph import FEATURES, IDS, LENGTH
from nextscale.plan.errors import EnvironmentProblem, ParityError
from nextscale.runtime.manifest import Verified
from nextscale.runtime.text import TextTokenizer

TOLERANCE = 1e-4  # times max(1, standard deviation of the features), as for the other graphs in float32
# Several lengths in one batch, none, and more than any limit.
PROMPTS = ("", "A red seven on a green gradient, rotated.", "a cat", "An astronaut rides a horse. " * 100)


def verify_text(
    file: Path, loaded: LoadedText, encoder: TextEncoder | None = None, tolerance: float = TOLERANCE
) -> Verified:
    """Runs the graph ``file`` with ONNX Runtime on a batch of prompts; raises :class:`ParityError` where it differs.

    ``encoder`` is the loaded one in the graph's precision, with the ``tolerance`` that belongs to it (None: as loaded).
    The loaded one is held against transformers' model of the same folder in float32 first.
    """
    ids, length = TextTokenizer(loaded.tokenizer).ids_of(PROMPTS, truncate=True)
    given = torch.from_numpy(ids), torch.from_numpy(length)
    with torch.inference_mode():
        eager = loaded.encoder(*given)
        wanted = eager if encoder is None else encoder(*given)
        worst = _distance(eager, reference_features(loaded, *given))
    _refuse(worst, TOLERANCE, f"the text encoder of {loaded.folder} differs from transformers' own")
    worst = max(worst, found := _distance(torch.from_numpy(_run(file, ids, length)), wanted))
    _refuse(found, tolerance, f"{file.name} differs from the eager text encoder")
    return Verified(
        "text", "onnxruntime CPU, prompts of several lengths, then transformers' own model", worst, tolerance
    )


def reference_features(loaded: LoadedText, ids: Tensor, length: Tensor) -> Tensor:
    """``last_hidden_state`` of transformers' model of the folder: (B, T, width) float32, padding included.

    It reads the weights for itself, so keys are proved too; for as long as it runs, they are in memory twice.
    """
    encoder = loaded.encoder
    model = _reference(loaded.folder)
    seen = torch.arange(encoder.tokens) < length[:, None]
    if encoder.prefix:
        prefix = torch.tensor([encoder.prefix]).expand(len(ids), -1)
        ids = torch.cat((prefix, ids), dim=1)
        seen = torch.cat((torch.ones_like(prefix, dtype=torch.bool), seen), dim=1)
    out: Tensor = model(input_ids=ids.long(), attention_mask=seen.long()).last_hidden_state
    return out[:, len(encoder.prefix) :].float()


def _reference(folder: Path) -> Any:
    """transformers' model, whose files were found to hold nothing but tensors before."""
    transformers, kind = import_transformers(), read_config(folder).model_type
    name = {"t5": "T5EncoderModel", "qwen2": "Qwen2Model", "qwen2_vl": "Qwen2VLModel"}.get(kind, "Qwen2VLTextModel")
    with _quiet(transformers.utils.logging):
        model = getattr(transformers, name).from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
        )
    return getattr(model, "language_model", model).eval()


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Its reports on parts of the file that no prompt goes through, and its progress bars, stay out of ours."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _run(file: Path, ids: np.ndarray, length: np.ndarray) -> np.ndarray:
    onnxruntime = importlib.import_module("onnxruntime")
    from nextscale.runtime.backends.onnxruntime import errors_of

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy of the weights, for one run
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        features: np.ndarray = session.run([FEATURES], {IDS: ids, LENGTH: length})[0]
    except errors_of(onnxruntime) as refusal:
        raise EnvironmentProblem(
            f"ONNX Runtime cannot run {file.name}, so it cannot be verified ({refusal})"
        ) from refusal
    return features


def _distance(found: Tensor, wanted: Tensor) -> float:
    """The largest error, in units of max(1, standard deviation of what is wanted)."""
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.std().clamp_min(1.0))


def _refuse(error: float, tolerance: float, what: str) -> None:
    if not error <= tolerance:
        raise ParityError(
            f"{what} by {error:.3g} of its spread ({tolerance:.0e} is allowed): the bundle is not published"
        )
