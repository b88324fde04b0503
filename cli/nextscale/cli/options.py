"""Values that several commands take, and how their text is read."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nextscale.plan.errors import InputError
from nextscale.plan.types import Grid


class Precision(StrEnum):
    """Of weights and products, where a plan is costed for GPUs."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe; `nextscale recipes` lists them.")]
BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of a bundle, for example engines/mine.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
Schedule = Annotated[
    str | None,
    typer.Option(
        metavar="SIDES",
        help="Scales, from coarse to fine: sides as 1,2,3,4 or height x width as 1x1,2x3, or a schedule's name.",
        show_default="the checkpoint's own",
    ),
]


def read_schedule(text: str | None) -> tuple[Grid, ...] | None:
    """``1,2,3`` or ``1x1,2x3`` or a published schedule's name; None stays None."""
    from nextscale.plan.schedules import SCHEDULES, schedule, squares

    if text is None:
        return None
    if re.match("[a-z]+-", text):
        return schedule(text)
    sides = [re.fullmatch(r"(\d{1,4})(?:x(\d{1,4}))?", part.strip()) for part in text.split(",")]
    if not all(sides) or len(sides) < 2:
        raise InputError(
            f"schedule {text!r} is not a list of two or more sides such as 1,2,3,4 (or 1x1,2x3), nor one of "
            f"{', '.join(SCHEDULES)}"
        )
    pairs = [(int(m[1]), int(m[2] or m[1])) for m in sides if m]
    if min(min(pair) for pair in pairs) < 1:
        raise InputError(f"schedule {text!r} has a side of 0: sides are 1 or more")
    return squares(*(h for h, _ in pairs)) if all(h == w for h, w in pairs) else tuple(pairs)


def new_folder(path: Path) -> Path:
    """A place for a result; told before anything is read or fetched where it is taken."""
    if path.exists():
        raise InputError(f"{path} is already there: take another name, or remove it first")
    return path
