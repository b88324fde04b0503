"""Tables and the picture of a plan say what the plan says."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from support.tiny import PRUNED

from nextscale.plan.cost import memory, plan_cost
from nextscale.plan.devices import device
from nextscale.plan.draw import CACHED, COMPUTED, RESTORED, draw_schedule
from nextscale.plan.methods import FastVAR
from nextscale.plan.recipes import RECIPES, plan_for, recipe
from nextscale.plan.tables import figure, memory_table, span, step_table
from nextscale.plan.types import Plan

SVG = "{http://www.w3.org/2000/svg}"


def rectangles(plan: Plan, colour: str) -> list[dict[str, str]]:
    root = ET.fromstring(draw_schedule(plan))
    return [rect.attrib for rect in root.iter(f"{SVG}rect") if rect.get("fill") == colour][:-1]  # but the legend's


def texts(plan: Plan) -> list[str]:
    return [text.text or "" for text in ET.fromstring(draw_schedule(plan)).iter(f"{SVG}text")]


def test_the_table_of_steps() -> None:
    plan = PRUNED(plan_for(recipe("var-d16")))
    table = step_table(plan, device("RTX 3090"), images=4)
    assert table.title == "var-d16: 4 pictures, fp16, roofline of RTX 3090"
    assert all(len(row) == len(table.columns) == len(table.numeric) for row in table.rows)
    assert [row[0] for row in table.rows] == ["begin", *(f"step_{k:02d}" for k in range(10)), "decode", "all"]
    last = dict(zip(table.columns, table.rows[10], strict=True))
    assert last["grid"] == "16×16"
    assert last["tokens"] == "256"
    assert last["kept"] == "103 in 15 of 16 layers"
    assert last["past rows"] == "357 to 424"
    assert last["GFLOP"] == figure(plan_cost(plan, 4).steps[9].total_flops / 1e9)
    assert table.rows[-1][3] == "680"


def test_the_table_of_memory() -> None:
    plan = plan_for(recipe("var-d36"))
    rows = dict(memory_table(plan, 2, "fp32").rows)
    assert rows == {cause: figure(size / 1e6) for cause, size in memory(plan, 2, "fp32").items()}


@pytest.mark.parametrize(
    ("number", "text"), [(12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.012")]
)
def test_figures_have_three_digits(number: float, text: str) -> None:
    assert figure(number) == text


def test_spans() -> None:
    assert span([3, 3]) == "3"
    assert span([5, 3, 4]) == "3 to 5"


@pytest.mark.parametrize("name", RECIPES)
def test_the_picture_is_xml_that_needs_nothing_else(name: str) -> None:
    svg = draw_schedule(plan_for(recipe(name)))
    root = ET.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert "href" not in svg
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in root.iter(f"{SVG}rect"):
        assert 0 <= float(rect.attrib.get("x", 0)) + float(rect.attrib["width"]) <= width
        assert 0 <= float(rect.attrib.get("y", 0)) + float(rect.attrib["height"]) <= height


def test_bands_show_what_is_computed_cached_and_restored() -> None:
    plan = PRUNED(plan_for(recipe("var-d16")))
    assert len(rectangles(plan, CACHED)) == 15
    assert len(rectangles(plan, RESTORED)) == 2 * 15
    assert len(rectangles(plan, COMPUTED)) == 16 * 10 - 15
    restored = rectangles(plan, RESTORED)[-1]
    computed = rectangles(plan, COMPUTED)[-1]
    share = float(computed["width"]) / (float(computed["width"]) + float(restored["width"]))
    assert share == pytest.approx(103 / 256, abs=1e-4)
    assert "103 kept" in texts(plan)


def test_skipped_scales_stay_as_empty_columns() -> None:
    plan = FastVAR({}, 0, skip=(8, 9))(plan_for(recipe("var-d16")))
    assert texts(plan).count("skipped") == 2
    assert "16×16" in texts(plan)


def test_names_are_escaped() -> None:
    plan = replace(plan_for(recipe("demo")), name="a<b>&c")
    assert "a<b>&c" in texts(plan)
