"""``nextscale debug``: where two backends, or two bundles, begin to differ inside one graph."""

from __future__ import annotations

from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli.errors import needing
from nextscale.cli.options import BundleFolder, Json
from nextscale.plan.errors import InputError, ParityError

if TYPE_CHECKING:
    from nextscale.compare.debug.difference import Found, Row
    from nextscale.runtime.subjects import Subject

USUAL = ("onnxruntime", "onnxruntime-unoptimized")
SHOWN = 12  # rows of a table: those beyond the tolerance, from the first on


def debug(
    bundle: BundleFolder,
    graph: Annotated[str, typer.Argument(metavar="GRAPH", help="One of its graphs: begin, step_00 ..., decode.")],
    backends: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Two of onnxruntime, onnxruntime-unoptimized, onnxruntime-cuda, eager, tensorrt, tensorrt-rtx.",
            show_default=",".join(USUAL),
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Another bundle of the same plan, the second side.", show_default="none"),
    ] = None,
    model: Annotated[Path | None, typer.Option(metavar="FILE", help="The transformer, for eager.")] = None,
    vae: Annotated[Path | None, typer.Option(metavar="FILE", help="The tokenizer, for eager.")] = None,
    labels: Annotated[
        str,
        typer.Option(metavar="LIST", help="Classes, or numbers of drawn texts, of the pictures that are recorded."),
    ] = "0,1",
    seed: Annotated[int, typer.Option(help="Their noise.")] = 0,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Allowed error, in units of max(1, std).", show_default="what an export allows"),
    ] = None,
    only: Annotated[str, typer.Option(metavar="NAME", help="Watch tensors whose names begin so: blocks.7/")] = "",
    every: Annotated[bool, typer.Option("--all", help="Print every tensor, not only those that differ.")] = False,
    json: Json = False,
) -> None:
    """Find the first tensor on which two backends do not agree, and say what it is in the model.

    Both get the inputs that the graph reads while a real picture is made. On a
    GPU they run the graph as the backend does; a TensorRT's engine is built here.
    bf16 bundles cannot be looked into: take the float32 one.

    \b
    nextscale debug engines/mine step_07 --backends onnxruntime,tensorrt-rtx
    nextscale debug engines/mine step_07 --backends onnxruntime,eager \\
        --model var_d16.pth --vae vae_ch160v4096z32.pth
    nextscale debug engines/mine step_07 --against engines/other

    Exit status 4: there is such a tensor.
    """
    with needing("export"):
        from nextscale.export.verify import TOLERANCES
    with needing("debug"):
        if find_spec("polygraphy") is None:  # imported when the flavour of TensorRT that it is to use is known
            raise ModuleNotFoundError(name="polygraphy")
    from nextscale.cli.generate import read_label, split_labels
    from nextscale.compare.debug.difference import find
    from nextscale.compare.debug.record import find_graph
    from nextscale.compare.debug.runners import Task
    from nextscale.compare.posed import posed
    from nextscale.runtime.bundle import open_bundle
    from nextscale.runtime.request import make_request

    names = pair(backends, against is not None)
    if tolerance is not None and not (isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"tolerance is a number from 0 on, in units of max(1, std); found {tolerance}")
    if (model is None) != (vae is None):
        raise InputError("eager needs both files of the checkpoint: --model and --vae")
    checkpoint = None if model is None or vae is None else (model, vae)
    first = open_bundle(bundle)
    second = first if against is None else open_bundle(against)
    one, other = (
        Task(name, side, find_graph(side.manifest, graph), checkpoint)
        for name, side in zip(names, (first, second), strict=True)
    )
    of: list[Subject] = [read_label(text, first.manifest.classes or ()) for text in split_labels(labels)]
    if first.manifest.plan.model().text is not None:
        numbers = [number for number in of if isinstance(number, int) and number >= 0]
        if len(numbers) < len(of):
            raise InputError(f"this bundle makes pictures of texts, which are drawn by number: 0,1; found {labels!r}")
        of = posed(first.manifest.plan.model(), numbers)
    allowed = TOLERANCES.get(first.manifest.precision, 0.0) if tolerance is None else tolerance
    found = find(one, other, make_request(first.manifest, of, seed), allowed, only)
    if json:
        print_found_json(found)
    else:
        print_found(found, every)
    if not found.agrees:
        raise ParityError(found.sentence)


def pair(backends: str | None, two_bundles: bool) -> tuple[str, str]:
    """Two names; one stands for both sides where there are two bundles."""
    if backends is None:
        backends = USUAL[0] if two_bundles else ",".join(USUAL)
    names = [name.strip() for name in backends.split(",")]
    names *= 2 if two_bundles and len(names) == 1 else 1
    if len(names) != 2:
        raise InputError(f"two backends are compared, as in {','.join(USUAL)}; found {backends!r}")
    return names[0], names[1]


def print_found(found: Found, every: bool) -> None:
    """The tensors that differ, or all of them, in the order of the graph; then the sentence."""
    from nextscale.cli.output import print_table, say

    rows = [row for row in found.rows if every or row.beyond]
    shown = rows if every else rows[:SHOWN]
    if shown:
        cells = [(r.place.tensor, r.place.words, f"{r.error:.1e}", f"{r.largest:.1e}", f"{r.mean:.1e}") for r in shown]
        columns = ("tensor", "in the model", "error", "largest", "mean")
        print_table(columns, cells, (False, False, True, True, True), f"{found.graph}: {' against '.join(found.sides)}")
    if len(rows) > len(shown):
        say(f"and {len(rows) - len(shown)} more that differ, of {len(found.rows)} in all (--all prints them)")
    if found.agrees:
        say(found.sentence)


def print_found_json(found: Found) -> None:
    """Everything, for machines."""
    from nextscale.cli.output import print_json
    from nextscale.compare.plain import plain

    data = plain(
        {
            "graph": found.graph,
            "sides": found.sides,
            "tolerance": found.tolerance,
            "agrees": found.agrees,
            "sentence": found.sentence,
            "first": None if found.first is None else found.first.place.tensor,
            "tensors": [as_data(row) for row in found.rows],
            "outputs_alone": [as_data(row) for row in found.plain],
        }
    )
    print_json(data)


def as_data(row: Row) -> dict[str, Any]:
    """One tensor."""
    place = row.place
    return {
        "tensor": place.tensor,
        "words": place.words,
        "operator": place.operator,
        "weights": place.weights,
        "error": row.error,
        "largest": row.largest,
        "mean": row.mean,
        "beyond": row.beyond,
        "whole_numbers": row.whole,
    }
