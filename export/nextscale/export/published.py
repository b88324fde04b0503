"""How upstream names a checkpoint's files and lays them out (the sheet's sections 1.4, 2.1, 2.5 and 3.1)."""

from __future__ import annotations

from typing import NamedTuple

from nextscale.plan.ratios import size_and_ratio
from nextscale.plan.types import Grid, Model, Tokenizer

SUFFIXES = (".safetensors", ".pth")  # in the order in which they are preferred


class Place(NamedTuple):
    """Where one state dict is: a file of that ``stem``, or a ``folder`` of that name with shards in it.

    ``prefix`` stands before its keys; in a ``.pth`` file the state dict may lie under the key ``within``.
    """

    stem: str
    folder: bool = False
    prefix: str = ""
    within: str | None = None


Schedule = tuple[Grid, ...]


def published_places(model: Model, tokenizer: Tokenizer, schedule: Schedule = ()) -> tuple[Place, Place]:
    """Of the transformer and the tokenizer. Sizes that upstream did not publish get names of its pattern.

    ``schedule`` tells weights apart that were trained for different sizes of pictures.
    """
    return {"var": _var, "infinity": _infinity, "hart": _hart}[model.family](model, tokenizer, schedule)


def published_stems(model: Model, tokenizer: Tokenizer, schedule: Schedule = ()) -> tuple[str, str]:
    """The names of the transformer's and the tokenizer's file, without their suffix."""
    transformer, pictures = published_places(model, tokenizer, schedule)
    return transformer.stem, pictures.stem


def _var(model: Model, t: Tokenizer, schedule: Schedule) -> tuple[Place, Place]:
    return Place(f"var_d{model.depth}"), Place(f"vae_ch{t.channels}v{t.vocabulary}z{t.code_channels}")


# By depth and width; what is not here upstream calls by its number of layers.
_INFINITY = {(32, 2048): Place("infinity_2b_reg"), (40, 3584): Place("infinity_8b_weights", folder=True)}


def _infinity(model: Model, t: Tokenizer, schedule: Schedule) -> tuple[Place, Place]:
    transformer = _INFINITY.get((model.depth, model.width), Place(f"infinity_layer{model.depth}"))
    trained = size_and_ratio(schedule)
    if transformer.folder and trained is not None and trained[0] == "0.25m":
        transformer = transformer._replace(stem="infinity_8b_512x512_weights")
    if t.patch > 1:
        kind = f"{t.code_channels * t.patch**2}_f{t.stride}_{t.code_channels}_patchify"
    else:
        kind = f"{t.code_channels}{'reg' if t.code_channels == 32 else ''}"
    return transformer, Place(f"infinity_vae_d{kind}", within="vae")


def _hart(model: Model, t: Tokenizer, schedule: Schedule) -> tuple[Place, Place]:
    return Place("llm", folder=True), Place("tokenizer", folder=True, prefix="vae.")
