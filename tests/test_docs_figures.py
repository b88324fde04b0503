"""What the documentation says in numbers: tables and figures are those of the committed results."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from nextscale.plan.recipes import plan_for, recipe

REPOSITORY = Path(__file__).resolve().parent.parent


def text(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "result"),
    [
        ("README.md", "demo_quality"),
        ("docs/recipes.md", "demo_quality"),
        ("docs/recipes.md", "demo_screening_scales"),
        ("docs/recipes.md", "demo_screening_last"),
        ("docs/precision.md", "precision"),
        ("docs/precision.md", "precision_graphs"),
        ("docs/precision.md", "int8"),
    ],
)
def test_tables_are_the_committed_results(page: str, result: str) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", text(f"benchmarks/results/{result}.md"), re.MULTILINE)
    assert tables
    for table in tables:
        assert table.count("\n") > 3
        assert table in text(page)


MACHINES = ("amd-epyc-2-cores-avx512", "intel-xeon-2-cores-avx512")


def test_the_figures_of_infinity_on_a_cpu_are_the_committed_results() -> None:
    speeds, peaks = ([[], [], []] for _ in range(2))
    for machine in MACHINES:
        cases = json.loads(text(f"benchmarks/results/{machine}/infinity_125m.json"))["cases"]
        rows = {row["recipe"]: row for row in cases}
        for i, tail in enumerate(("", "-fastvar", "-fastvar13")):
            row = rows[f"infinity-125m-1m{tail}"]
            upstream, ours = (row["sides"][side]["total"]["median"] for side in ("upstream", "runtime"))
            speeds[i].append(f"{upstream / ours:.2f}")
            peaks[i].append(f"{row['memory']['runtime']['pss'] / row['memory']['upstream']['pss']:.2f}")
    page = text("docs/text.md")
    for what, cells in (("plain", 0), ("FastVAR", 1), ("FastVAR, thirteen passes", 2)):
        assert f"| {what} | {' | '.join(speeds[cells])} | {' | '.join(peaks[cells])} |" in page
    readme = text("README.md")
    assert f"| Infinity's 125M, 1024 px | {' | '.join(speeds[0])} |" in readme
    assert f"| the same, FastVAR on both sides | {' | '.join(speeds[1])} |" in readme
    every = sorted(cell for row in peaks for cell in row)
    assert (
        f"takes {every[0]} to {every[-1]} times the memory of upstream's; its {speeds[0][1]} is from before"
        in " ".join(readme.split())
    )


def test_the_support_table_says_what_the_results_say() -> None:
    path = REPOSITORY / "benchmarks" / "support_table.py"
    spec = importlib.util.spec_from_file_location("support_table", path)
    assert spec is not None
    assert spec.loader is not None
    support = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(support)
    assert support.checks(), "no machine was ever checked"
    assert support.in_readme(text("README.md")) == support.table(support.checks(), support.builds())


def test_int8_s_shares_of_the_roofline_are_the_committed_results() -> None:
    pair = json.loads(text("benchmarks/results/int8.json"))["pair"]["found"]
    single, whole = (
        100 * pair["roofline"][name]["total"] / pair["graphs"][name]["without decode"]["median"]
        for name in ("fp32", "int8")
    )
    said = f"it takes {single:.0f} % in float32 and {whole:.0f} % in int8"
    assert said in " ".join(text("docs/precision.md").split())


def test_the_shipped_recipe_costs_less_than_a_point() -> None:
    rows = json.loads(text("benchmarks/results/demo_quality.json"))["variants"]
    (shipped,) = (row for row in rows if row["variant"] == "fastvar")
    assert shipped["methods"] == list(plan_for(recipe("demo-fastvar")).methods)
    assert shipped["pictures"] >= 10_000
    assert shipped["accuracy_loss_upper_bound"] < 0.01


def test_every_float32_part_has_its_measured_reason() -> None:
    page, report = text("docs/precision.md"), json.loads(text("benchmarks/results/precision.json"))
    exported = {(row["recipe"], row["precision"]): row["rms"] for row in report["exported"]}
    factors: dict[str, list[float]] = {}
    for row in report["islands"]:
        factors.setdefault(row["island"], []).append(row["rms"] / exported[row["recipe"], row["precision"]])
    factors.pop("nothing, tokens kept as in float32")
    assert len(factors) == 10
    for what, (fp16, bf16) in factors.items():
        assert f"- **{what}** (RMS {fp16:.2f} and {bf16:.2f} times)" in page
    assert report["settings"]["how"].endswith("not measured on hardware yet")
    assert report["settings"]["how"] in page
    again = json.loads(text("benchmarks/results/precision_again.json"))
    said = f"{again['settings']['pictures']} pictures, {100 * again['loss']:.2f} points lost, with a standard error of"
    assert f"{said} {100 * again['loss_standard_error']:.2f}" in " ".join(page.split())
    runs = [(report["settings"]["pictures"], report["exported"][1]["loss"])]
    runs.append((again["settings"]["pictures"], again["loss"]))
    pictures = sum(n for n, _ in runs)
    gained = -100 * sum(n * loss for n, loss in runs) / pictures
    assert f"pooled, bf16 gains {gained:.2f} points over {pictures} pictures" in " ".join(page.split())


def test_the_readme_s_figures_are_the_committed_results() -> None:
    exports = json.loads(text("benchmarks/results/export.json"))["exports"]
    summary = {row["name"]: row for row in json.loads(text("benchmarks/results/compare_var_d16.json"))["summary"]}
    sides = [summary[row["recipe"]] for row in exports]
    rows = (
        [f"{row['seconds']:.0f} s" for row in exports],
        [f"{row['peak_pss_over_checkpoint']:.2f}" for row in exports],
        [f"{row['bundle_over_checkpoint']:.2f}" for row in exports],
        [f"{side['total']['median']:.2f} s" for side in sides],
        [f"{side['memory'] / 1e9:.2f} GB" for side in sides],
    )
    for cells in rows:
        assert f"| {' | '.join(cells)} |" in text("README.md")
    eager = summary["eager full"]
    assert f"takes {eager['total']['median']:.2f} s" in text("README.md")
    assert f"eager's {eager['memory'] / 1e9:.2f} GB" in text("README.md")


def test_the_readme_s_figures_of_packed_weights_are_the_committed_results() -> None:
    found, readme = json.loads(text("benchmarks/results/packed.json")), " ".join(text("README.md").split())
    graphs = found["graphs"]
    packed, unpacked = (graphs[way]["picture"]["median"] for way in ("packed", "unpacked"))
    assert f"draws a picture in {packed:.2f} s where the bundle's own graphs take {unpacked:.2f} s" in readme
    first = graphs["packed"]["step_00"]["median"] / graphs["unpacked"]["step_00"]["median"]
    assert f"its first step in {first:.2f} of the time" in readme
    one, four, copies = (found["peaks"][way] / 1e9 for way in ("packed", "packed, 4 processes", "own copies"))
    assert f"one copy: {one:.1f} GB, and {four:.1f} GB for four processes together" in readme
    assert f"takes {copies:.1f} GB for the same speed. It opens in {found['opens']['packed, full']:.1f} s" in readme


@pytest.mark.parametrize(
    ("what", "subject", "variant"),
    [
        ("VAR-d16, 256 px", "d16", "full"),
        ("the same, 60 and 40 % kept", "d16", "fastvar 60, 40 %"),
        ("the same, int8", "d16", "int8"),
        ("VAR-d36's shape in 12 layers, 512 px", "d36-512", "full"),
        ("the same, 60 and 50 % kept", "d36-512", "fastvar 60, 50 %"),
        ("the same, 40 and 25 % kept", "d36-512", "fastvar 40, 25 %"),
    ],
)
def test_the_readme_s_table_of_speed_is_the_suite_s(what: str, subject: str, variant: str) -> None:
    cells = []
    for machine in MACHINES:
        seen = json.loads(text(f"benchmarks/results/{machine}/{subject}.json"))["seen"]
        full, ours = (seen[who]["transformer"]["median"] for who in ("upstream, full", f"nextscale, {variant}"))
        pruned = seen.get(f"upstream, {variant}")
        theirs = "" if pruned is None or variant == "full" else f" ({pruned['transformer']['median'] / ours:.2f})"
        cells.append(f"{full / ours:.2f}{theirs}")
    assert f"| {what} | {' | '.join(cells)} |" in text("README.md")
