"""``nextscale plan``: every GPU, two recipes side by side, other aspect ratios and shorter texts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.command import Command

from nextscale.cli.plan import read_ratio
from nextscale.plan.codec import from_json
from nextscale.plan.cost import plan_cost
from nextscale.plan.devices import DEVICES, device
from nextscale.plan.errors import InputError
from nextscale.plan.recipes import plan_for, recipe
from nextscale.plan.schedules import schedule

FULL, PRUNED = "infinity-2b-1m", "infinity-2b-1m-fastvar"


def data(nextscale: Command, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(nextscale("plan", *arguments, "--json").out)
    return found


def test_full_beside_fastvar_on_every_gpu(nextscale: Command) -> None:
    text = nextscale("plan", FULL, "--against", PRUNED, "--gpu", "all", "--precision", "bf16").out
    for name in DEVICES:
        assert f"  {name} " in text
    published = ("published: FastVAR, tables 1 and 5", "2.61", "0.950", "16,100", "11,900")
    for said in (*published, "tokens of a layer", "MB of tapes"):
        assert said in text
    assert "ms at least" not in text  # of no single GPU


def test_side_by_side_on_one_gpu(nextscale: Command) -> None:
    text = nextscale("plan", PRUNED, "--against", FULL, "--gpu", "rtx3090").out
    assert f"{PRUNED} beside {FULL}: 1 picture, fp16" in text
    assert "ms at least on RTX 3090" in text
    assert "A100" not in text.replace("user's, A100", "")


def test_json_of_one_gpu_is_as_it_was(nextscale: Command) -> None:
    found = data(nextscale, "var-d16", "--gpu", "H100")
    cost = plan_cost(plan_for(recipe("var-d16")))
    assert found["gpu"] == "H100"
    assert found["seconds"] == cost.seconds(device("H100"))
    assert sum(graph["seconds"] for graph in found["graphs"]) == pytest.approx(found["seconds"])
    assert found["seconds_by_gpu"] == {"H100": found["seconds"]}
    assert found["published"] == []
    assert "against" not in found


def test_json_of_all_gpus_and_two_recipes(nextscale: Command) -> None:
    found = data(nextscale, FULL, "--against", PRUNED, "--gpu", "all", "--images", "2")
    assert found["gpu"] == "all"
    assert "seconds" not in found
    assert list(found["seconds_by_gpu"]) == list(found["ratios"]["seconds"]) == list(DEVICES)
    assert found["against"]["recipe"] == PRUNED
    assert found["ratios"]["flops"] == found["flops"] / found["against"]["flops"]
    assert found["ratios"]["memory"] == found["memory"]["total"] / found["against"]["memory"]["total"]
    assert from_json(found["against"]["plan"]) == plan_for(recipe(PRUNED))
    assert found["published"] == []  # which is of one picture
    one = data(nextscale, FULL)["published"]
    assert [(each["gpu"], each["seconds"], each["gigabytes"]) for each in one] == [
        ("", 2.61, 16.1),
        ("H100", 0.8, None),
        ("A100", 1.15, None),
    ]


@pytest.mark.parametrize(("ratio", "name"), [("3:4", "-0.75"), ("1.5", "-1.5"), ("0.7", "-0.666"), ("1:1", "")])
def test_an_aspect_ratio_takes_its_schedule_and_positions(nextscale: Command, ratio: str, name: str) -> None:
    plan = from_json(data(nextscale, PRUNED, "--ratio", ratio)["plan"])
    assert plan.schedule == schedule(f"infinity-1m{name}")
    assert plan.model().rope_grid == plan.schedule[12]
    assert [step.scale for step in plan.steps] == list(range(11))


def test_a_shorter_text(nextscale: Command) -> None:
    short, full = (data(nextscale, FULL, *more) for more in (["--text-tokens", "64"], []))
    plan = from_json(short["plan"])
    assert plan.model().text is not None
    assert plan.model().text.tokens == 64
    assert short["memory"]["conditioning"] < full["memory"]["conditioning"] / 4
    assert short["flops"] < full["flops"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["var-d16", "--ratio", "3:4"], "a schedule that ends with 16x16 has no other aspect ratios"),
        (
            [FULL, "--ratio", "wide"],
            "aspect ratio 'wide' is not height to width such as 3:4, nor a number such as 0.75",
        ),
        ([FULL, "--ratio", "1:0"], "aspect ratio '1:0' is not height to width"),
        ([FULL, "--ratio", "9:1"], "an aspect ratio of 9 is asked for; height over width may be from 0.25 to 4"),
        ([FULL, "--ratio", "1:1", "--schedule", "infinity-1m"], "--schedule and --ratio both say which grids are run"),
        (["infinity-2b-2k", "--ratio", "3"], "there is no schedule of 2k for the aspect ratio 3"),
        (["var-d16", "--text-tokens", "9"], "recipe 'var-d16' reads no text: leave --text-tokens out"),
        (["hart-1024", "--against", "hart-2048"], "recipe 'hart-2048' is unknown; known are "),
    ],
)
def test_refusals(nextscale: Command, arguments: list[str], message: str) -> None:
    run = nextscale("plan", *arguments)
    assert run.status == InputError.exit_status
    assert message in run.sentence


def test_ratios_are_read_both_ways() -> None:
    assert [read_ratio(text) for text in ("3:4", "0.75", " 16:9 ", "2")] == [0.75, 0.75, 16 / 9, 2]
