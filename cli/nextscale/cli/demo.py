"""``nextscale demo``: the repository's own model, exported with and without FastVAR, drawn and compared."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextscale.cli.errors import needing
from nextscale.plan.errors import InputError

if TYPE_CHECKING:
    from nextscale.cli.progress import Progress
    from nextscale.compare.comparison import Comparison

PLACE = Path("checkpoints/demo")
FULL, PRUNED = RECIPES = ("demo", "demo-fastvar")
GRID, LIST = "full-beside-fastvar.png", "demo.json"


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Bundles, pictures and report; an earlier demo goes.")
    ] = Path("demo"),
    n: Annotated[int, typer.Option("--n", help="Pictures, spread over the classes.")] = 16,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Holds var.safetensors, vae.safetensors, config.json.", show_default=str(PLACE)
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Of every side.", show_default="what PyTorch takes")] = None,
) -> None:
    """Export the demo model with and without FastVAR, draw both, and compare them with eager PyTorch.

    Takes a few minutes on two cores. Ends by saying where the pictures are and what FastVAR saved.
    """
    from nextscale.cli.progress import Progress
    from nextscale.compare.folder import claimed
    from nextscale.compare.options import Options

    with needing("compare"):
        from nextscale.compare.comparison import compare
    start = time.monotonic()
    options = Options(pictures=n, threads=threads)
    options.check()
    files = checkpoint_files(checkpoint)
    bundles = [out / "engines" / name for name in RECIPES]
    claimed(out, LIST, [GRID], [f"engines/{name}" for name in RECIPES])
    with Progress() as progress:
        export_both(files, bundles, progress)
        comparison = compare(bundles, *files, out / "report", options, progress)
    draw_grid(comparison, out / GRID)
    print_demo(comparison, out, time.monotonic() - start)
    comparison.check()


def checkpoint_files(given: Path | None) -> tuple[Path, Path]:
    """Transformer and tokenizer of the demo: in ``given``, else in the folder that the repository has for them."""
    here = Path(__file__).resolve().parents[3] / PLACE
    places = [PLACE, here] if given is None else [given]
    for place in places:
        files = place / "var.safetensors", place / "vae.safetensors"
        if all(path.is_file() for path in files):
            return files
    if given is not None:
        raise InputError(f"{given} does not hold var.safetensors and vae.safetensors: name the folder of a checkpoint")
    raise InputError(
        f"there is no {PLACE}: the demo's checkpoint comes with the repository, not with the package; "
        "run this in a clone, or name a checkpoint's folder with --checkpoint"
    )


def export_both(files: tuple[Path, Path], bundles: list[Path], progress: Progress) -> None:
    """Both bundles; pieces that they share are traced once."""
    from nextscale.export.bundle import Options, export_bundle
    from nextscale.export.checkpoint import load_checkpoint
    from nextscale.export.graphs import Traced
    from nextscale.plan.recipes import plan_for, recipe
    from nextscale.runtime.manifest import Recipe

    checkpoint, traced = load_checkpoint(*files), Traced()
    for name, out in zip(RECIPES, bundles, strict=True):
        chosen = recipe(name)
        plan = plan_for(chosen, checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)

        def told(stage: str, done: int, total: int, what: str, name: str = name) -> None:
            progress(f"{stage} {name}", done, total, what)

        export_bundle(checkpoint, Options(plan, Recipe(chosen.name, chosen.version)), out, told, traced)


def draw_grid(comparison: Comparison, path: Path) -> None:
    """Every class, full beside FastVAR, as the bundles made them."""
    from nextscale.compare.grid import labelled_grid

    measured = comparison.measured
    full, pruned = (measured.records[name].pictures for name in RECIPES)
    labels = [measured.label(i) for i in range(len(full))]
    title = f"The demo model's pictures, seeds from {measured.asked.seed}: full beside FastVAR"
    labelled_grid(("full", "FastVAR"), labels, list(zip(full, pruned, strict=True)), title).save(path)


def print_demo(comparison: Comparison, out: Path, seconds: float) -> None:
    """The comparison's table, what FastVAR saved, and where everything is."""
    from nextscale.cli.compare import print_comparison
    from nextscale.cli.output import say
    from nextscale.compare.summary import side_summaries

    print_comparison(comparison)
    sides = {side.name: side for side in side_summaries(comparison.measured)}
    full, pruned = (sides[name] for name in RECIPES)
    say(
        f"FastVAR: {1e3 * pruned.total.median:.0f} ms for a picture where the full model takes "
        f"{1e3 * full.total.median:.0f} ms ({full.total.median / pruned.total.median:.2f} times as fast), with "
        f"{100 * pruned.flops / full.flops:.0f} % of its FLOPs"
    )
    say(f"pictures, full beside FastVAR: {out / GRID}")
    say(f"report: {comparison.report}")
    say(f"bundles: {out / 'engines'}")
    say(f"done in {seconds:.0f} s; next: nextscale generate {out / 'engines' / PRUNED} --labels 0,1 --seed 7 -o out/")
