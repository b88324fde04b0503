"""Prompts to token ids, by the tokenizer that a bundle holds.

The ids go through the bundle's graph ``text``; no PyTorch and no transformers is needed, only the package tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from nextscale.plan.errors import InputError
from nextscale.runtime.errors import BundleError
from nextscale.runtime.packages import imported

if TYPE_CHECKING:
    from nextscale.runtime.bundle import Bundle

TOKENIZER_FILE = "tokenizer.json"


class Tokens(NamedTuple):
    """Prompts as the graph ``text`` reads them: ids (n, T) int32 padded on the right, length (n,) int32 of each."""

    ids: NDArray[np.int32]
    length: NDArray[np.int32]


class TextTokenizer:
    """The tokenizer of a bundle, for prompts of up to ``tokens`` tokens. Safe from any thread.

    ``content`` is the text of a ``tokenizer.json`` that says how it pads, as the exporter writes it; ``where`` names it
    in errors.
    """

    def __init__(self, content: str, where: str | Path = TOKENIZER_FILE) -> None:
        tokenizers = import_tokenizers()
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the package raises nothing more special
            raise BundleError(f"{where} cannot be read as a tokenizer ({error}): export the bundle again") from error
        padding = self._tokenizer.padding or {}
        if not padding.get("length") or padding.get("direction") != "right":
            raise BundleError(f"{where} does not say how prompts are padded: export the bundle again")
        self.tokens, self.pad_id = int(padding["length"]), int(padding["pad_id"])
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._added = int(self._tokenizer.num_special_tokens_to_add(False))

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """The tokenizer of an opened bundle; :class:`InputError` where it was exported without a text encoder."""
        if bundle.manifest.tokenizer is None:
            raise InputError(
                f"{bundle.folder} holds no text encoder, so it cannot read prompts: give it text features, "
                "or export it again with one"
            )
        path = bundle.path(bundle.manifest.tokenizer)
        return cls(path.read_text(encoding="utf-8"), path)

    @property
    def vocabulary(self) -> int:
        """One more than the largest id."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def ids_of(self, prompts: Sequence[str], truncate: bool = False) -> Tokens:
        """The ids of prompts, with what the tokenizer puts around them (T5: ``</s>`` at the end).

        A prompt of more than ``tokens`` tokens is an :class:`InputError`; with ``truncate`` the end of its text is cut
        off, and what stands around it stays. An empty prompt is one like others.
        """
        several = isinstance(prompts, Sequence) and not isinstance(prompts, (str, bytes))
        if not several or not all(isinstance(prompt, str) for prompt in prompts):
            raise InputError(f"prompts are a list of texts; found {prompts!r:.80}")
        ids = np.full((len(prompts), self.tokens), self.pad_id, np.int32)
        length = np.zeros(len(prompts), np.int32)
        for row, prompt in enumerate(prompts):
            found = self._encode(prompt, truncate)
            ids[row, : len(found)] = found
            length[row] = len(found)
        return Tokens(ids, length)

    def _encode(self, prompt: str, truncate: bool) -> list[int]:
        try:
            encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        except (TypeError, UnicodeError) as error:  # half of a surrogate pair
            raise InputError(f"the prompt {prompt!r:.80} is no text that UTF-8 can hold") from error
        count = len(encoding.ids) + self._added
        if count > self.tokens:
            if not truncate:
                raise InputError(
                    f"the prompt {prompt!r:.40} has {count} tokens and this bundle reads {self.tokens}: shorten it, or "
                    "ask for it to be truncated"
                )
            encoding.truncate(self.tokens - self._added)
        ids: list[int] = self._tokenizer.post_process(encoding).ids
        return ids


def import_tokenizers() -> ModuleType:
    """The module; raises :class:`EnvironmentProblem` saying how to install it."""
    return imported("tokenizers", "prompts are read with", "pip install 'nextscale[text]', or give text features")
