"""Plans beside each other and beside published figures: rows, ratios, and what is left empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextscale.plan.beside import comparison_table, device_table, ratios, too_small
from nextscale.plan.cost import memory, plan_cost
from nextscale.plan.devices import DEVICES, cpu, device
from nextscale.plan.published import PUBLISHED, published
from nextscale.plan.recipes import RECIPES, plan_for, recipe
from nextscale.plan.schedules import schedule
from nextscale.plan.tables import Table, figure, step_table

FULL, PRUNED = (plan_for(recipe(name)) for name in ("infinity-2b-1m", "infinity-2b-1m-fastvar"))
TABLES = "FastVAR, tables 1 and 5, GPU not named"


def row(table: Table, what: str) -> tuple[str, ...]:
    """The cells of the one row that begins with this."""
    (found,) = (cells for cells in table.rows if cells[0] == what)
    return found[1:]


def test_every_gpu_and_the_published_seconds() -> None:
    table = device_table([FULL, PRUNED], precision="bf16")
    assert [cells[0] for cells in table.rows[:6]] == list(DEVICES)
    assert table.columns == ("GPU", "infinity-2b-1m", "infinity-2b-1m-fastvar", "ratio")
    assert row(table, f"published: {TABLES}") == ("2.61", "0.950", "2.75")
    assert row(table, "published: Infinity, issue 27, H100") == ("0.800", "", "")
    for name, entry in DEVICES.items():
        seconds = [plan_cost(plan, precision="bf16").seconds(entry) for plan in (FULL, PRUNED)]
        assert row(table, name)[2] == f"{seconds[0] / seconds[1]:.2f}"
    alone = device_table([FULL])
    assert alone.columns == ("GPU", "infinity-2b-1m")
    assert {len(cells) for cells in alone.rows} == {2}


def test_two_plans_side_by_side() -> None:
    table = comparison_table(FULL, PRUNED, device("RTX 3090"), precision="bf16")
    assert row(table, "steps") == ("13", "11", "1.18")
    computed = round((25 * 2912 + 7 * 4121) / 32)
    assert row(table, "tokens of a layer (mean)") == ("10,521", f"{computed:,}", f"{10521 / computed:.2f}")
    assert row(table, f"ms published: {TABLES}") == ("2,610", "950", "2.75")
    assert row(table, f"MB published: {TABLES}") == ("16,100", "11,900", "1.35")
    assert row(table, "MB of restore caches")[0] == "0"
    assert row(table, "MB of restore caches")[2] == ""
    reports = [memory(plan, precision="bf16")["total"] for plan in (FULL, PRUNED)]
    assert row(table, "MB in all")[2] == f"{reports[0] / reports[1]:.2f}"
    assert not any(cells[0].startswith("ms") for cells in comparison_table(PRUNED, PRUNED, None).rows[:5])


def test_gpus_that_cannot_hold_a_plan_are_named() -> None:
    large, every = plan_for(recipe("infinity-8b-1m")), list(DEVICES.values())
    assert memory(large, precision="bf16")["total"] > 24e9
    assert too_small(large, every, precision="bf16") == ["RTX 3090", "RTX 4090"]
    assert too_small(large, every, precision="fp32") == ["RTX 3090", "RTX 4090", "RTX 5090"]
    assert too_small(FULL, every, precision="bf16") == []
    assert too_small(large, [cpu(100, 20)]) == [], "nobody said how much it has"


def test_ratios_are_those_of_the_costs() -> None:
    found = ratios(FULL, PRUNED, [device("H200")], 2, "fp16")
    a, b = (plan_cost(plan, 2) for plan in (FULL, PRUNED))
    assert found["flops"] == a.total_flops / b.total_flops > 3
    assert found["seconds"] == {"H200": a.seconds(device("H200")) / b.seconds(device("H200"))}
    assert 1 < found["memory"] < found["bytes"]
    assert ratios(FULL, FULL, list(DEVICES.values()), 1, "fp16")["seconds"] == dict.fromkeys(DEVICES, 1.0)


def test_published_figures_are_of_the_recipe_as_it_stands() -> None:
    assert published(FULL) == PUBLISHED["infinity-2b-1m"]
    assert published(FULL, images=2) == ()
    assert published(plan_for(recipe("infinity-2b-1m"), schedule=schedule("infinity-0.25m"))) == ()
    assert published(plan_for(recipe("var-d16"))) == ()
    assert set(PUBLISHED) <= set(RECIPES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_published_time_beats_a_roofline(name: str) -> None:
    """A figure below what the peak rates allow would be one of another thing. Unnamed GPUs count as the slowest."""
    cost = plan_cost(plan_for(recipe(name)), precision="bf16")
    for told in PUBLISHED[name]:
        if told.seconds is not None:
            assert told.seconds > cost.seconds(device(told.gpu or "RTX 3090"))


def test_published_memory_is_above_what_weights_and_tapes_take() -> None:
    for name, figures in PUBLISHED.items():
        report = memory(plan_for(recipe(name)), precision="bf16")
        for told in figures:
            assert told.gigabytes is None or told.gigabytes * 1e9 > report["weights"] + report["tapes"]


def test_steps_without_a_gpu_have_no_times() -> None:
    with_times, without = step_table(PRUNED, DEVICES["A100"]), step_table(PRUNED, None)
    assert [cells[:-1] for cells in with_times.rows] == list(without.rows)
    assert with_times.columns[:-1] == without.columns
    assert len(without.numeric) == len(without.columns)
    assert without.title == "infinity-2b-1m-fastvar: 1 picture, fp16"


DOCUMENTED = (
    *(
        "infinity-2b-1m",
        "infinity-2b-1m-fastvar",
        "infinity-2b-1m-fastvar13",
        "infinity-2b-2k",
        "infinity-2b-2k-fastvar",
    ),
    *("infinity-8b-1m", "infinity-8b-1m-fastvar", "hart-1024", "hart-1024-fastvar"),
)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_page_about_recipes_has_these_figures(name: str) -> None:
    plan = plan_for(recipe(name))
    cost, size = plan_cost(plan, precision="bf16"), memory(plan, precision="bf16")["total"]
    told = next((each for each in published(plan) if each.gigabytes or each.seconds), None)
    seconds, gigabytes = (str(told.seconds or ""), str(told.gigabytes or "")) if told else ("", "")
    work, time = figure(cost.total_flops / 1e12), figure(cost.seconds(device("RTX 3090")))
    line = f"| {name} | {work} | {time} | {seconds} | {figure(size / 1e9)} | {gigabytes} |"
    assert line in (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8"), line
