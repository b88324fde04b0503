"""``nextscale generate``: pictures from a bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli.options import BundleFolder, Json
from nextscale.plan.errors import InputError

if TYPE_CHECKING:
    from nextscale.runtime import Pipeline, Result, StepResult

DEFAULT = "the bundle's"


def generate(
    bundle: BundleFolder,
    labels: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Class names or numbers, one per picture; `none` for no class. A number that is a class's name "
            "means that class.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the PNGs go.")] = Path("out"),
    seed: Annotated[int | None, typer.Option(help="Fixes the pictures.", show_default="drawn, and told")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="How strongly the class counts.", show_default=DEFAULT)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Share of the probability sampled from, up to 1.", show_default=DEFAULT)
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Above 0.", show_default=DEFAULT)] = None,
    backend: Annotated[
        str, typer.Option(help="What executes the graphs: onnxruntime, tensorrt or tensorrt-rtx.")
    ] = "onnxruntime",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:1.", show_default="cpu for onnxruntime, else cuda")
    ] = None,
    targets: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where `build -o` put the engines.", show_default="beside the bundle"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads.", show_default="one per core")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds.", show_default="none")] = None,
    json: Json = False,
) -> None:
    """Make pictures with a bundle, one for each label. Needs no PyTorch.

    \b
    nextscale generate engines/var-d16 --labels 207,88 --seed 0 -o out/
    nextscale generate engines/demo --labels star,A,none --guidance-scale 2

    Every PNG carries its label, seed, settings, recipe, the bundle's hash and
    versions as metadata.
    """
    from nextscale.cli.progress import Progress
    from nextscale.compare.folder import check_writable
    from nextscale.runtime import Pipeline

    asked = split_labels(labels)
    check_writable(out)
    opened = Pipeline.open(bundle, backend=backend, device=device, threads=threads, targets=targets)
    with opened as pipeline, Progress() as progress:
        names = pipeline.manifest.classes or ()
        wanted = [read_label(text, names) for text in asked]
        total = _steps(pipeline, len(wanted))
        seen = 0

        def on_step(step: StepResult) -> None:
            nonlocal seen
            seen += 1
            progress("generate", seen, total, f"scale {step.grid[0]}×{step.grid[1]}")

        result = pipeline.generate(
            wanted,
            seed=seed,
            guidance_scale=guidance_scale,
            top_p=top_p,
            temperature=temperature,
            timeout=timeout,
            on_step=None if pipeline.backend.replays else on_step,  # a device is done before a bar is drawn
        )
    paths = result.save(out)
    if json:
        from nextscale.cli.output import print_json

        print_json(_report(result, paths, names))
        return
    for path in paths:
        typer.echo(str(path))
    null = pipeline.manifest.plan.model().classes
    typer.echo(f"drawn: {', '.join(class_text(label, names, null) for label in dict.fromkeys(result.labels))}")
    pictures = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
    typer.echo(f"{pictures} in {result.seconds:.2f} s ({result.seconds / len(paths):.2f} s each), seed {result.seed}")


def split_labels(text: str) -> list[str]:
    """``207, star,none`` to its parts."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"labels {text!r} has an empty entry: give numbers or names such as 207,88")
    return parts


def read_label(text: str, names: Sequence[str]) -> int | str | None:
    """A class's name, also where it reads as something else; None for none; a number; else a name nobody has."""
    if text in names:
        return text
    if text.lower() == "none":
        return None
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else text


def class_text(label: int, names: Sequence[str], null: int) -> str:
    """A class in words, by name and number; ``null`` is the number of no class."""
    if label == null:
        return "no class"
    return f"{names[label]} (class {label})" if label < len(names) else f"class {label}"


def _steps(pipeline: Pipeline, pictures: int) -> int:
    """Steps of all passes."""
    from nextscale.runtime.request import passes

    return len(pipeline.manifest.plan.steps) * sum(1 for _ in passes(pictures, pipeline.batch_sizes))


def _report(result: Result, paths: list[Path], names: Sequence[str]) -> dict[str, Any]:
    images = [
        {
            "file": str(path),
            "label": result.labels[i],
            "class_name": names[result.labels[i]] if result.labels[i] < len(names) else None,
            "image": result.image_numbers[i],
            "guidance_scale": result.guidance_scale[i],
            "top_p": result.top_p[i],
            "temperature": result.temperature[i],
        }
        for i, path in enumerate(paths)
    ]
    made = result.provenance
    return {
        "seed": result.seed,
        "images": images,
        "seconds": result.seconds,
        "step_seconds": result.step_seconds,
        "bundle": made.bundle,
        "bundle_sha256": made.bundle_sha256,
        "recipe": made.recipe,
        "versions": dict(made.versions),
    }
