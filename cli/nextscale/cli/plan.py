"""``nextscale plan``: what a recipe will do and cost, before anything is exported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli.options import Json, Precision, RecipeName, Schedule, read_schedule

if TYPE_CHECKING:
    from nextscale.plan.cost import PlanCost
    from nextscale.plan.devices import Device
    from nextscale.plan.types import Plan


def plan(
    recipe: RecipeName,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="Whose peak rates the times are for.")] = "RTX 4090",
    images: Annotated[int, typer.Option(min=1, help="Pictures in one pass.")] = 1,
    precision: Annotated[Precision, typer.Option(help="Of weights and products.")] = Precision.fp16,
    schedule: Schedule = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the schedule into this SVG file.")] = None,
    json: Json = False,
) -> None:
    """Print a recipe's plan: tokens, kept tokens, work and memory of every step, with a GPU's roofline time.

    \b
    nextscale plan var-d16-fastvar
    nextscale plan var-d36 --gpu H100 --images 8 --svg d36.svg

    Needs no checkpoint and no PyTorch. Times are what the GPU's peak rates
    allow at best, not what is measured.
    """
    from nextscale.plan import recipes
    from nextscale.plan.cost import plan_cost
    from nextscale.plan.devices import device
    from nextscale.plan.draw import draw_schedule

    chosen, on = recipes.recipe(recipe), device(gpu)
    made = recipes.plan_for(chosen, schedule=read_schedule(schedule))
    cost = plan_cost(made, images, precision.value)
    if svg is not None:
        svg.write_text(draw_schedule(made), encoding="utf-8")
    if json:
        from nextscale.cli.output import print_json

        print_json({"recipe": chosen.name, "version": chosen.version, **_report(made, cost, on)})
        return
    _print(made, chosen.description, on, cost)
    if svg is not None:
        typer.echo(f"drawn into {svg}")


def _print(made: Plan, description: str, on: Device, cost: PlanCost) -> None:
    from nextscale.cli.output import print_table, say
    from nextscale.plan.limits import limits
    from nextscale.plan.tables import memory_table, step_table

    say(f"{made.name}: {description}")
    for method in made.methods:
        say(f"  {method}")
    steps = step_table(made, on, cost.images, cost.precision)
    seconds = [on.seconds(graph.total_flops, graph.total_bytes, cost.precision) for graph in cost.graphs]
    bars = [*("█" * round(16 * s / max(seconds)) for s in seconds), ""]
    rows = [(*row, bar) for row, bar in zip(steps.rows, bars, strict=True)]
    print_table((*steps.columns, ""), rows, (*steps.numeric, False), steps.title)
    causes = memory_table(made, cost.images, cost.precision)
    print_table(causes.columns, causes.rows, causes.numeric, causes.title)
    for sentence in limits(made):
        say(f"TensorRT: {sentence}")


def _report(made: Plan, cost: PlanCost, on: Device) -> dict[str, Any]:
    """The same as data: FLOPs, bytes, seconds."""
    from nextscale.plan import codec
    from nextscale.plan.cost import memory
    from nextscale.plan.limits import limits

    graphs = [
        {
            "name": graph.name,
            "flops": graph.total_flops,
            "flops_by_cause": dict(graph.flops),
            "bytes": graph.total_bytes,
            "bytes_by_cause": dict(graph.moved),
            "seconds": on.seconds(graph.total_flops, graph.total_bytes, cost.precision),
        }
        for graph in cost.graphs
    ]
    return {
        "images": cost.images,
        "precision": cost.precision,
        "gpu": on.name,
        "graphs": graphs,
        "flops": cost.total_flops,
        "bytes": cost.total_bytes,
        "seconds": cost.seconds(on),
        "memory": memory(made, cost.images, cost.precision),
        "limits": limits(made),
        "plan": codec.to_json(made),
    }
