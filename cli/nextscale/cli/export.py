"""``nextscale export``: from a checkpoint to a bundle of verified step graphs."""

from __future__ import annotations

import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from nextscale.cli.options import Json, Schedule, new_folder, read_schedule
from nextscale.plan.errors import InputError

if TYPE_CHECKING:
    from nextscale.export.checkpoint import Checkpoint
    from nextscale.export.text import LoadedText
    from nextscale.plan.recipes import Recipe
    from nextscale.plan.types import Grid, Plan

FILES, HUB = "The checkpoint, as local files", "The checkpoint, from a model hub"
TEXT = "Texts, for models that draw them"


class Precision(StrEnum):
    """What the weights and products of a bundle are."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"


class Check(StrEnum):
    """What is proved before a bundle is published."""

    numbers = "numbers"
    signatures = "signatures"


def export(
    recipe: Annotated[str, typer.Option("--recipe", "-r", metavar="RECIPE", help="What to make of it.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="BUNDLE", help="The new bundle, such as engines/mine.")],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Transformer, .pth or .safetensors, or a folder of it.", rich_help_panel=FILES
        ),
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Tokenizer, .pth or .safetensors.", rich_help_panel=FILES)
    ] = None,
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Such as FoundationVision/var.", rich_help_panel=HUB)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="COMMIT", help="Commit, tag or branch.", rich_help_panel=HUB)
    ] = None,
    download_to: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Its files go to FOLDER/OWNER--NAME.", rich_help_panel=HUB)
    ] = Path("downloads"),
    precision: Annotated[
        Precision,
        typer.Option(
            help="Of weights and products in the graphs. int8: for ONNX Runtime on a CPU alone; it is faster, and "
            "pictures differ from fp32's (docs/precision.md says by how much)."
        ),
    ] = Precision.fp32,
    schedule: Schedule = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Codes sampled from; 0 is all.", show_default="the recipe's")
    ] = None,
    more_smooth: Annotated[
        bool, typer.Option("--more-smooth", help="Sample mixtures of codes, as VAR's option of that name.")
    ] = False,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="A text encoder (flan-t5-xl, ...) to put into the bundle.", rich_help_panel=TEXT
        ),
    ] = None,
    text_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Longest prompt, in tokens.", show_default="as trained: 512", rich_help_panel=TEXT),
    ] = None,
    system_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Before every prompt of a language model.", show_default="none", rich_help_panel=TEXT
        ),
    ] = None,
    check: Annotated[
        Check,
        typer.Option(help="numbers: every graph against eager PyTorch; signatures: nothing is run, for large models."),
    ] = Check.numbers,
    json: Json = False,
) -> None:
    """Export a checkpoint as a bundle: one static graph per scale step, verified against eager PyTorch.

    \b
    nextscale export --recipe var-d16-fastvar -o engines/mine \\
        --model var_d16.pth --vae vae_ch160v4096z32.pth
    nextscale export --recipe var-d16 -o engines/var-d16 \\
        --repo FoundationVision/var
    nextscale export --recipe infinity-2b-1m-fastvar -o engines/fox \\
        --model infinity_2b_reg.pth --vae infinity_vae_d32reg.pth \\
        --text flan-t5-xl/ --precision bf16 --check signatures

    The bundle appears whole or not at all. Top-k and the schedule are fixed;
    guidance scale, top-p and temperature are chosen with every picture.
    Without --text, a bundle that draws texts is given their features.
    """
    from nextscale.plan import recipes

    chosen, grids = recipes.recipe(recipe), read_schedule(schedule)
    new_folder(out)
    _check_source(model, vae, repo, revision)
    if system_prompt is not None and text is None:
        raise InputError("--system-prompt is given without a --text encoder that it could stand before")

    from nextscale.cli.progress import Progress
    from nextscale.cli.report import print_bundle
    from nextscale.export.bundle import Options, export_bundle
    from nextscale.runtime.manifest import Recipe as Named

    start = time.monotonic()
    checkpoint = _checkpoint(chosen, model, vae, repo, revision, download_to, grids, text_tokens)
    plan = _plan(chosen, checkpoint, top_k, more_smooth)
    encoder = None if text is None else _text(text, plan, system_prompt)
    options = Options(plan, Named(chosen.name, chosen.version), precision.value, check.value, encoder)
    with Progress() as progress:
        export_bundle(checkpoint, options, out, progress)
    print_bundle(out, time.monotonic() - start, json)


def _check_source(model: Path | None, vae: Path | None, repo: str | None, revision: str | None) -> None:
    """One of the two ways to name a checkpoint, told before anything heavy is loaded."""
    given = [option for option, value in (("--model", model), ("--vae", vae), ("--repo", repo)) if value is not None]
    if given not in (["--model", "--vae"], ["--repo"]):
        raise InputError(
            "give the checkpoint either as --model FILE and --vae FILE, or as --repo OWNER/NAME; found "
            f"{' and '.join(given) or 'neither'}"
        )
    if revision is not None and repo is None:
        raise InputError(f"--revision {revision} is given without a --repo that it could belong to")


def _checkpoint(
    chosen: Recipe,
    model: Path | None,
    vae: Path | None,
    repo: str | None,
    revision: str | None,
    folder: Path,
    grids: tuple[Grid, ...] | None,
    tokens: int | None,
) -> Checkpoint:
    from nextscale.export.checkpoint import load_checkpoint

    more: dict[str, Any] = {"usual": chosen.schedule, "text_tokens": tokens}
    if repo is not None:
        import sys

        from nextscale.export.fetch import fetch

        there = folder / repo.replace("/", "--")
        found = fetch(repo, revision, chosen.model, chosen.tokenizer, there, sys.stderr.isatty(), chosen.schedule)
        return load_checkpoint(found.model, found.vae, grids, repo=repo, revision=found.revision, **more)
    return load_checkpoint(cast(Path, model), cast(Path, vae), grids, **more)


def _text(folder: Path, plan: Plan, system_prompt: str | None) -> LoadedText:
    """The text encoder, if the plan's model takes texts of its width."""
    wanted = plan.model().text
    if wanted is None:
        raise InputError(f"--text {folder} is given, and {plan.name} draws classes: leave it out")
    from nextscale.export.text import load_text_encoder

    return load_text_encoder(folder, wanted.tokens, system_prompt, wanted.width)


def _plan(chosen: Recipe, checkpoint: Checkpoint, top_k: int | None, more_smooth: bool) -> Plan:
    """The recipe with the checkpoint's own numbers."""
    from nextscale.plan.recipes import plan_for

    codes, k = checkpoint.model.vocabulary, chosen.sampling.top_k if top_k is None else top_k
    if k > codes:
        raise InputError(
            f"top-k is {k}, and the checkpoint has {codes} codes: give --top-k, at most {codes} (0 is all)"
        )
    sampling = replace(chosen.sampling, top_k=k, smooth=more_smooth or chosen.sampling.smooth)
    return plan_for(chosen, checkpoint.model, checkpoint.tokenizer, checkpoint.schedule, sampling)
