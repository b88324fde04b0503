"""``nextscale plan``: what a recipe will do and cost, before anything is exported."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli.options import Json, Precision, RecipeName, Schedule, read_schedule
from nextscale.plan.errors import InputError

if TYPE_CHECKING:
    from nextscale.plan.cost import PlanCost
    from nextscale.plan.devices import Device
    from nextscale.plan.recipes import Recipe
    from nextscale.plan.tables import Table
    from nextscale.plan.types import Model, Plan

ALL = "all"


def plan(
    recipe: RecipeName,
    gpu: Annotated[
        str, typer.Option(metavar="NAME", help="Whose peak rates the times are for; `all` compares every one.")
    ] = "RTX 4090",
    images: Annotated[int, typer.Option(min=1, help="Pictures in one pass.")] = 1,
    precision: Annotated[Precision, typer.Option(help="Of weights and products.")] = Precision.fp16,
    schedule: Schedule = None,
    ratio: Annotated[
        str | None,
        typer.Option(metavar="H:W", help="Aspect ratio, height to width, of a recipe that has schedules for several."),
    ] = None,
    text_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest text, in tokens.", show_default="the recipe's"),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Another recipe to stand beside this one, with ratios.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the schedule into this SVG file.")] = None,
    json: Json = False,
) -> None:
    """Print a recipe's plan: tokens, kept tokens, work and memory of every step, with a GPU's roofline time.

    \b
    nextscale plan var-d16-fastvar
    nextscale plan var-d36 --gpu H100 --images 8 --svg d36.svg
    nextscale plan infinity-2b-1m --against infinity-2b-1m-fastvar --gpu all
    nextscale plan infinity-8b-1m --ratio 3:4

    Needs no checkpoint and no PyTorch. Times are what the GPU's peak rates
    allow at best, not what is measured.
    """
    from nextscale.plan import recipes
    from nextscale.plan.devices import DEVICES, device
    from nextscale.plan.draw import draw_schedule

    if schedule is not None and ratio is not None:
        raise InputError("--schedule and --ratio both say which grids are run: give one of them")
    chosen = recipes.recipe(recipe)
    both = [chosen, *([recipes.recipe(against)] if against else [])]
    devices = list(DEVICES.values()) if gpu.lower() == ALL else [device(gpu)]
    sides = [_made(each, schedule, ratio, text_tokens) for each in both]
    if svg is not None:
        svg.write_text(draw_schedule(sides[0]), encoding="utf-8")
    if json:
        from nextscale.cli.output import print_json

        report = _report(sides, devices, images, precision.value)
        print_json({"recipe": chosen.name, "version": chosen.version, **report})
        return
    _print(sides, chosen.description, devices, images, precision.value)
    if svg is not None:
        typer.echo(f"drawn into {svg}")


def read_ratio(text: str) -> float:
    """``3:4`` or ``0.75``: height over width."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?", text.strip())
    if not found or not float(found[2] or 1):
        raise InputError(f"aspect ratio {text!r} is not height to width such as 3:4, nor a number such as 0.75")
    return float(found[1]) / float(found[2] or 1)


def _made(recipe: Recipe, schedule: str | None, ratio: str | None, text_tokens: int | None) -> Plan:
    """The recipe's plan on the grids and for the text that are asked for."""
    from nextscale.plan.ratios import at_ratio
    from nextscale.plan.recipes import plan_for

    grids = read_schedule(schedule) if ratio is None else at_ratio(recipe.schedule, read_ratio(ratio))
    return plan_for(recipe, schedule=grids, model=_with_text(recipe, text_tokens))


def _with_text(recipe: Recipe, tokens: int | None) -> Model | None:
    if tokens is None:
        return None
    if recipe.model.text is None:
        raise InputError(f"recipe {recipe.name!r} reads no text: leave --text-tokens out")
    if recipe.model.text.use != "cross" or tokens > recipe.model.text.tokens:
        raise InputError(
            f"recipe {recipe.name!r} reads texts of "
            + (
                f"up to {recipe.model.text.tokens}"
                if recipe.model.text.use == "cross"
                else f"{recipe.model.text.tokens}"
            )
            + f" tokens; found --text-tokens {tokens}"
        )
    return replace(recipe.model, text=replace(recipe.model.text, tokens=tokens))


def _print(sides: list[Plan], description: str, devices: list[Device], images: int, precision: str) -> None:
    from nextscale.cli.output import say
    from nextscale.plan.beside import comparison_table, device_table, too_small
    from nextscale.plan.cost import memory
    from nextscale.plan.limits import limits
    from nextscale.plan.tables import memory_table

    made, on = sides[0], devices[0] if len(devices) == 1 else None
    say(f"{made.name}: {description}")
    for method in made.methods:
        say(f"  {method}")
    _print_steps(made, on, images, precision)
    if len(sides) == 1:
        _table(memory_table(made, images, precision))
    else:
        _table(comparison_table(made, sides[1], on, images, precision))
    if on is None:
        _table(device_table(sides, images, precision))
    for side in sides:
        if names := too_small(side, devices, images, precision):
            gigabytes = memory(side, images, precision)["total"] / 1e9
            say(f"{side.name} takes {gigabytes:.1f} GB by its plan, more than there is on {' and '.join(names)}")
    for sentence in limits(made):
        say(f"TensorRT: {sentence}")


def _print_steps(made: Plan, on: Device | None, images: int, precision: str) -> None:
    """The steps, with bars of their times: of their work where no GPU is chosen."""
    from nextscale.plan.cost import plan_cost
    from nextscale.plan.tables import step_table

    steps, cost = step_table(made, on, images, precision), plan_cost(made, images, precision)
    sizes = [on.seconds(g.total_flops, g.total_bytes, precision) if on else g.total_flops for g in cost.graphs]
    bars = [*("█" * round(16 * size / max(sizes)) for size in sizes), ""]
    rows = tuple((*row, bar) for row, bar in zip(steps.rows, bars, strict=True))
    _table(replace(steps, columns=(*steps.columns, ""), numeric=(*steps.numeric, False), rows=rows))


def _table(table: Table) -> None:
    from nextscale.cli.output import print_table

    print_table(table.columns, table.rows, table.numeric, table.title)


def _report(sides: list[Plan], devices: list[Device], images: int, precision: str) -> dict[str, Any]:
    """The same as data: FLOPs, bytes, seconds."""
    from nextscale.plan.beside import ratios
    from nextscale.plan.cost import plan_cost

    costs = [plan_cost(made, images, precision) for made in sides]
    report: dict[str, Any] = {
        "images": images,
        "precision": precision,
        "gpu": devices[0].name if len(devices) == 1 else ALL,
        **_side(sides[0], costs[0], devices),
    }
    if len(sides) == 2:
        report["against"] = {"recipe": sides[1].name, **_side(sides[1], costs[1], devices)}
        report["ratios"] = ratios(sides[0], sides[1], devices, images, precision)
    return report


def _side(made: Plan, cost: PlanCost, devices: list[Device]) -> dict[str, Any]:
    """One plan. ``seconds`` are of the one GPU; ``seconds_by_gpu`` has those of the whole chain on each."""
    from nextscale.plan import codec
    from nextscale.plan.beside import too_small
    from nextscale.plan.cost import memory
    from nextscale.plan.limits import limits
    from nextscale.plan.published import published

    on = devices[0] if len(devices) == 1 else None
    graphs = [
        {
            "name": graph.name,
            "flops": graph.total_flops,
            "flops_by_cause": dict(graph.flops),
            "bytes": graph.total_bytes,
            "bytes_by_cause": dict(graph.moved),
            **({"seconds": on.seconds(graph.total_flops, graph.total_bytes, cost.precision)} if on else {}),
        }
        for graph in cost.graphs
    ]
    return {
        "graphs": graphs,
        "flops": cost.total_flops,
        "bytes": cost.total_bytes,
        **({"seconds": cost.seconds(on)} if on else {}),
        "seconds_by_gpu": {device.name: cost.seconds(device) for device in devices},
        "memory": memory(made, cost.images, cost.precision),
        "too_small": too_small(made, devices, cost.images, cost.precision),
        "published": [codec.encode(each) for each in published(made, cost.images)],
        "limits": limits(made),
        "plan": codec.to_json(made),
    }
