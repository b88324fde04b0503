"""``nextscale weights``: the bundle of a fine-tune, with the graphs of another."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from nextscale.cli.options import BundleFolder, Json, new_folder


def weights(
    bundle: BundleFolder,
    model: Annotated[Path, typer.Option(metavar="FILE", help="Transformer of the fine-tune.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NEW", help="The new bundle, such as engines/mine-2.")],
    vae: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its tokenizer, where it was trained too.", show_default="the bundle's"),
    ] = None,
    json: Json = False,
) -> None:
    """Make the bundle of a fine-tune: new weights behind the same graphs; nothing is traced.

    Every graph is verified as by an export, but of bf16, which the CPU cannot run.

    \b
    nextscale weights engines/var-d16 --model tuned.pth -o engines/tuned

    The fine-tune must have the bundle's sizes and schedule; another number
    of classes, for example, needs an export of its own.
    """
    new_folder(out)
    from nextscale.cli.progress import Progress
    from nextscale.cli.report import print_bundle
    from nextscale.export.reweight import reweight

    start = time.monotonic()
    with Progress() as progress:
        reweight(bundle, model, vae, out, progress)
    print_bundle(out, time.monotonic() - start, json)
