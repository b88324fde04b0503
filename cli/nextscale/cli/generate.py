"""``nextscale generate``: pictures from a bundle."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli.options import BundleFolder, Json
from nextscale.plan.errors import InputError

if TYPE_CHECKING:
    from nextscale.runtime import Pipeline, Result, StepResult

DEFAULT = "the bundle's"
OF = "What the pictures are of"


def generate(
    bundle: BundleFolder,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Class names or numbers, one per picture; `none` for no class. A number that is a class's name "
            "means that class.",
            rich_help_panel=OF,
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="A sentence, one per picture: give it several times.", rich_help_panel=OF),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="A text's features instead, a .npy file (rows, width) each; FILE:12 where 12 of its rows count.",
            rich_help_panel=OF,
        ),
    ] = None,
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the pictures should not show.", rich_help_panel=OF)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the PNGs go.")] = Path("out"),
    seed: Annotated[int | None, typer.Option(help="Fixes the pictures.", show_default="drawn, and told")] = None,
    guidance_scale: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER", help="How strongly it counts; or a list, a number for every scale.", show_default=DEFAULT
        ),
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
        typer.Option(metavar="FOLDER", help="Where `build -o` put what it built.", show_default="beside the bundle"),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads.", show_default="one per core")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds.", show_default="none")] = None,
    json: Json = False,
) -> None:
    """Make pictures with a bundle, one for each label or prompt. Needs no PyTorch.

    \b
    nextscale generate engines/var-d16 --labels 207,88 --seed 0 -o out/
    nextscale generate engines/demo --labels star,A,none --guidance-scale 2
    nextscale generate engines/infinity --prompt "a red fox in the snow" \\
        --negative "text, frame"

    Every PNG carries its label or prompt, seed, settings, recipe, the bundle's
    hash and versions as metadata.
    """
    from nextscale.cli.progress import Progress
    from nextscale.compare.folder import check_writable
    from nextscale.runtime import Pipeline

    asked = _asked(labels, prompt, features)
    guidance = None if guidance_scale is None else read_guidance(guidance_scale)
    check_writable(out)
    opened = Pipeline.open(bundle, backend=backend, device=device, threads=threads, targets=targets)
    with opened as pipeline, Progress() as progress:
        names = pipeline.manifest.classes or ()
        texts = pipeline.manifest.plan.model().text is not None
        if texts == (labels is not None):
            ways = "texts: give --prompt or --features" if texts else "classes: give --labels"
            raise InputError(f"{bundle} makes pictures of {ways}")
        wanted = asked if labels is None else [read_label(str(text), names) for text in asked]
        total = _steps(pipeline, len(wanted))
        seen = 0

        def on_step(step: StepResult) -> None:
            nonlocal seen
            seen += 1
            progress("generate", seen, total, f"scale {step.grid[0]}×{step.grid[1]}")

        result = pipeline.generate(
            wanted,
            negative=negative,
            seed=seed,
            guidance_scale=guidance and (guidance[0] if len(guidance) == 1 else [guidance] * len(wanted)),
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
    drawn = (class_text(s, names, null) if isinstance(s, int) else s for s in dict.fromkeys(result.subjects))
    typer.echo(f"drawn: {', '.join(filter(None, drawn)) or 'what the features say'}")
    pictures = "1 picture" if len(paths) == 1 else f"{len(paths)} pictures"
    typer.echo(f"{pictures} in {result.seconds:.2f} s ({result.seconds / len(paths):.2f} s each), seed {result.seed}")


def _asked(labels: str | None, prompts: Sequence[str] | None, features: Sequence[str] | None) -> list[Any]:
    """What each picture is of, in one of the three ways to say it."""
    given = [way for way in (labels, prompts, features) if way is not None and way != []]
    if len(given) != 1:
        raise InputError(
            "say what the pictures are of by one of --labels, --prompt and --features; found "
            f"{'none of them' if not given else 'several'}"
        )
    if labels is not None:
        return split_labels(labels)
    return list(prompts) if prompts else [read_features(text) for text in features or ()]


def read_features(text: str) -> Any:
    """The array of a .npy file, which holds numbers alone; of ``FILE:12`` with the number of rows that count."""
    import numpy as np

    path, rows = (m[1], int(m[2])) if (m := re.fullmatch(r"(.+):([0-9]{1,9})", text)) else (text, None)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no .npy file of numbers ({str(error).splitlines()[0]:.120})") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is no .npy file of numbers (it holds several arrays): save the one that is meant")
    return array if rows is None else (array, rows)


def read_guidance(text: str) -> list[float]:
    """``4`` or ``3,3,4``."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(
            f"guidance-scale {text!r} is no number, nor a list of numbers such as 3,3,4 (one for every scale)"
        ) from error


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


def _subject(subject: int | str, negative: str | None, names: Sequence[str]) -> dict[str, Any]:
    if isinstance(subject, str):
        return {"prompt": subject, "negative": negative}
    return {"label": subject, "class_name": names[subject] if subject < len(names) else None}


def _report(result: Result, paths: list[Path], names: Sequence[str]) -> dict[str, Any]:
    images = [
        {
            "file": str(path),
            **_subject(result.subjects[i], result.negatives[i], names),
            "image": result.image_numbers[i],
            "guidance_scale": result.guidance_scale[i][0]
            if len(set(result.guidance_scale[i])) == 1
            else list(result.guidance_scale[i]),
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
