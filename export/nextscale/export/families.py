"""Which eager model a plan's numbers belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nextscale.export.models.bsq import BSQVAE
from nextscale.export.models.contract import Derived, TokenizerModel, Transformer
from nextscale.export.models.hart import HART
from nextscale.export.models.infinity import Infinity
from nextscale.export.models.var import VAR
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.errors import InputError
from nextscale.plan.types import Grid, Model, Tokenizer

TRANSFORMERS: dict[str, type[Transformer]] = {"var": VAR, "infinity": Infinity, "hart": HART}

DERIVED: Mapping[str, Derived] = {
    name: how
    for derived in (*(kind.DERIVED for kind in TRANSFORMERS.values()), VQVAE.DERIVED, BSQVAE.DERIVED)
    for name, how in derived.items()
}


def transformer(model: Model, schedule: Sequence[Grid]) -> Transformer:
    """The transformer of those numbers, its weights undefined; raises :class:`InputError` for an unknown family."""
    if model.family not in TRANSFORMERS:
        raise InputError(f"model family {model.family!r} is unknown; known are {', '.join(TRANSFORMERS)}")
    return TRANSFORMERS[model.family](model, schedule)


def tokenizer_model(tokenizer: Tokenizer, scales: int, encoder_blocks: int = 2, encoder: bool = True) -> TokenizerModel:
    """The tokenizer of those numbers, with its picture encoder or without."""
    kind = VQVAE if tokenizer.codebook else BSQVAE
    return kind(tokenizer, scales, encoder_blocks, encoder)
