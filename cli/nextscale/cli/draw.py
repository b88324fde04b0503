"""``nextscale draw``: a checkpoint with drawn weights, to try everything without a download."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextscale.cli.options import RecipeName, Schedule, read_schedule
from nextscale.plan.errors import InputError

if TYPE_CHECKING:
    from nextscale.plan.recipes import Recipe
    from nextscale.plan.types import Model, Tokenizer

SMALLER = "Another size than the recipe's"


class Blocks(StrEnum):
    """What blocks are stored in."""

    fp32 = "fp32"
    bf16 = "bf16"


class Form(StrEnum):
    """How a checkpoint is stored."""

    pth = "pth"
    safetensors = "safetensors"


def draw(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the files go.")],
    seed: Annotated[int, typer.Option(min=0, help="Fixes the weights.")] = 0,
    form: Annotated[Form, typer.Option("--format", help="Of the files.")] = Form.pth,
    depth: Annotated[int | None, typer.Option(min=1, help="Layers.", rich_help_panel=SMALLER)] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Channels of a token.", rich_help_panel=SMALLER)] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads.", rich_help_panel=SMALLER)] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Classes.", rich_help_panel=SMALLER)] = None,
    vocabulary: Annotated[int | None, typer.Option(min=2, help="Codes.", rich_help_panel=SMALLER)] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="The tokenizer's channels.", rich_help_panel=SMALLER)
    ] = None,
    multipliers: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Its widths by level, such as 1,2.", rich_help_panel=SMALLER),
    ] = None,
    text_width: Annotated[
        int | None, typer.Option(min=1, help="Channels of a text's features.", rich_help_panel=SMALLER)
    ] = None,
    schedule: Schedule = None,
    blocks: Annotated[Blocks, typer.Option(help="Of the transformer's blocks; all else is fp32.")] = Blocks.fp32,
) -> None:
    """Write a checkpoint of exactly the published keys and shapes, with drawn weights (its pictures mean nothing).

    \b
    nextscale draw var-d16 -o drawn/
    nextscale draw var-d16 -o tiny/ --depth 2 --width 64 --classes 10 \\
        --vocabulary 64 --schedule 1,2,3,4 --channels 32 --multipliers 1,2

    nextscale draw infinity-2b-1m -o drawn/ --format safetensors --blocks bf16

    Writes var_d16.pth and vae_ch160v4096z32.pth (1.6 GB); the names follow the sizes. What they cannot tell, such as
    grids that are not square, goes into a config.json beside them.
    """
    import torch

    from nextscale.cli.output import say, size_text
    from nextscale.cli.progress import Progress
    from nextscale.export.config import FILE_NAME
    from nextscale.export.draw import draw_checkpoint
    from nextscale.plan import recipes

    chosen = recipes.recipe(recipe)
    model = _model(chosen, depth, width, heads, classes, vocabulary, text_width)
    tokenizer = _tokenizer(chosen, channels, multipliers, vocabulary)
    grids = read_schedule(schedule) or chosen.schedule
    with Progress() as progress:
        dtype = getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[blocks.value])
        files = draw_checkpoint(model, tokenizer, grids, out, seed, form.value, progress, dtype)
    for path in (*files, *out.glob(FILE_NAME)):
        parts = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        say(f"{path}  {size_text(sum(p.stat().st_size for p in parts))}")
    few = f" --top-k {model.vocabulary}" if chosen.sampling.top_k > model.vocabulary else ""
    scales = f" --schedule {schedule}" if schedule else ""
    say(f"next: nextscale export --recipe {recipe} --model {files[0]} --vae {files[1]}{few}{scales} -o engines/NAME")


def _model(
    chosen: Recipe,
    depth: int | None,
    width: int | None,
    heads: int | None,
    classes: int | None,
    vocabulary: int | None,
    text_width: int | None,
) -> Model:
    """The recipe's transformer with other numbers."""
    was = chosen.resized(chosen.model, depth, width, heads)
    for option, value, there in (
        ("--classes", classes, was.classes),
        ("--vocabulary", vocabulary, not was.bits),
        ("--text-width", text_width, was.text),
    ):
        if value is not None and not there:
            raise InputError(f"{option} {value} is given, and {chosen.name} has none: leave it out")
    text = None if was.text is None else replace(was.text, width=text_width or was.text.width)
    return replace(was, classes=classes or was.classes, vocabulary=vocabulary or was.vocabulary, text=text)


def _tokenizer(chosen: Recipe, channels: int | None, multipliers: str | None, vocabulary: int | None) -> Tokenizer:
    was = chosen.tokenizer
    widths = was.multipliers
    if multipliers is not None:
        try:
            widths = tuple(int(part) for part in multipliers.split(","))
        except ValueError as error:
            raise InputError(f"multipliers {multipliers!r} is not a list of whole numbers such as 1,1,2") from error
    new = replace(was, channels=channels or was.channels, multipliers=widths, vocabulary=vocabulary or was.vocabulary)
    groups = [w for w in widths if w < 1 or (new.channels * w) % new.norm_groups]
    if groups:
        raise InputError(
            f"{new.channels} channels times {groups[0]} cannot be normed in {new.norm_groups} groups: it must be a "
            "positive multiple of them"
        )
    return replace(new, stride=2 ** (len(widths) - 1))
