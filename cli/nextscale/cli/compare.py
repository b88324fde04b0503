"""``nextscale compare``: bundles against eager PyTorch in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nextscale.cli.errors import needing
from nextscale.cli.options import Json
from nextscale.compare.options import Options

if TYPE_CHECKING:
    from nextscale.compare.comparison import Comparison

DEFAULTS = Options()
DEFAULT = "the first bundle's"


def compare(
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Bundles of one checkpoint.")],
    model: Annotated[Path, typer.Option(metavar="FILE", help="The transformer that the bundles were made of.")],
    vae: Annotated[Path, typer.Option(metavar="FILE", help="The tokenizer that they were made of.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="The report; an earlier one is replaced.")
    ] = Path("report"),
    n: Annotated[int, typer.Option("--n", help="Pictures that every side makes.")] = DEFAULTS.pictures,
    batch: Annotated[int, typer.Option(help="Pictures at a time.")] = DEFAULTS.batch,
    seed: Annotated[int, typer.Option(help="Of the first run; each next run has the next one.")] = DEFAULTS.seed,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How strongly class or text count.", show_default=DEFAULT)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Share of the probability sampled from, up to 1.", show_default=DEFAULT)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 0.", show_default=DEFAULT)] = None,
    threads: Annotated[int | None, typer.Option(help="Of every side.", show_default="what PyTorch takes")] = None,
    warm_up: Annotated[int, typer.Option(help="Runs of each side that do not count.")] = DEFAULTS.warm_up,
    memory: Annotated[bool, typer.Option(help="Measure memory, each side in its own process.")] = DEFAULTS.memory,
    backends: Annotated[
        str,
        typer.Option(
            "--backends",
            "--backend",
            metavar="NAMES",
            help="Columns, with commas: eager, torch.compile, onnxruntime, tensorrt, tensorrt-rtx; all: those here.",
        ),
    ] = ",".join(DEFAULTS.backends),
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda, for every side.", show_default="cuda where a column needs it")
    ] = DEFAULTS.device,
    json: Json = False,
) -> None:
    """Run bundles and eager PyTorch by turns; write latency, memory, parity and pictures into a report.

    \b
    nextscale compare engines/var-d16 engines/var-d16-fastvar -o report/ \\
        --model var_d16.pth --vae vae_ch160v4096z32.pth
    nextscale compare engines/mine --backends eager,torch.compile,onnxruntime \\
        --model var_d16.pth --vae vae_ch160v4096z32.pth

    Exit status 4: a bundle does not compute what eager PyTorch computes. The report is written all the same.
    """
    from nextscale.cli.progress import Progress

    with needing("compare"):
        from nextscale.compare.comparison import compare as run
    options = Options(
        pictures=n,
        batch=batch,
        seed=seed,
        guidance_scale=guidance_scale,
        top_p=top_p,
        temperature=temperature,
        threads=threads,
        warm_up=warm_up,
        memory=memory,
        backends=tuple(name.strip() for name in backends.split(",")),
        device=device,
    )
    with Progress() as progress:
        comparison = run(bundles, model, vae, out, options, progress)
    if json:
        typer.echo((comparison.report.parent / "report.json").read_text(encoding="utf-8"))
    else:
        print_comparison(comparison)
        typer.echo(f"report: {comparison.report}")
    comparison.check()


def print_comparison(comparison: Comparison) -> None:
    """The report's first table, and every verdict."""
    from nextscale.cli.output import print_table, say, size_text
    from nextscale.compare.summary import side_summaries

    rows = [
        (
            side.name,
            f"{side.total.median * 1e3:.1f}",
            f"{side.total.low * 1e3:.1f} to {side.total.high * 1e3:.1f}",
            f"{side.faster:.2f}",
            f"{side.flops / 1e9:.3g}",
            "" if side.memory is None else size_text(side.memory),
            "" if side.own is None else size_text(side.own),
            "" if side.device is None else size_text(side.device),
            "" if side.first is None else f"{side.first * 1e3:.1f}",
            "equal" if side.psnr is None else f"{side.psnr:.1f}",
            "" if side.ssim is None else f"{side.ssim:.4f}",
        )
        for side in side_summaries(comparison.measured)
    ]
    times, memory = ("ms", "quartiles", "times as fast", "GFLOP"), ("peak memory", "own", "on GPU")
    columns = ("side", *times, *memory, "first ms", "PSNR dB", "SSIM")
    count = comparison.measured.options.pictures
    title = f"{count} pictures; times, PSNR and SSIM against eager PyTorch in full"
    told = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    cells = [[row[i] for i in told] for row in rows]
    print_table([columns[i] for i in told], cells, (False, *[True] * (len(told) - 1)), title)
    for sentence in (*(v.sentence for v in comparison.verdicts), *comparison.measured.notes):
        say(sentence)
    if comparison.measured.machine.warning:
        say(comparison.measured.machine.warning)
