"""What the documentation says is there: modules, links, commands, options, code."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from support.bundles import write_bundle

from nextscale.plan.recipes import plan_for, recipe
from nextscale.runtime import manifest as manifests
from nextscale.runtime import signatures

REPOSITORY = Path(__file__).resolve().parent.parent
ROOTS = ("plan", "plugins", "runtime", "export", "compare", "cli")
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("", "docs", "engines", "examples", "benchmarks", "tests", *ROOTS)
    for path in (REPOSITORY / folder).glob("*.md")
)


def text(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def run(block: str, names: dict[str, object]) -> None:
    """Runs a block as it stands: this file's own future imports do not count."""
    exec(compile(block, "<a page>", "exec", dont_inherit=True), names)


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


# --- modules ---------------------------------------------------------------------------------------------------------


def modules(root: str) -> set[str]:
    """``models/var``: every module of a root that holds something, by its path."""
    package = REPOSITORY / root / "nextscale" / root
    files = (path for path in package.rglob("*.py") if path.name != "__init__.py")
    return {path.relative_to(package).with_suffix("").as_posix() for path in files}


def documented(root: str) -> list[str]:
    """The modules in the first column of the root's table."""
    section = re.split(rf"^### {root} \(.*\)$", text("docs/structure.md"), flags=re.MULTILINE)[1]
    section = re.split(r"^##", section, flags=re.MULTILINE)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("root", ROOTS)
def test_every_module_has_its_line(root: str) -> None:
    named = documented(root)
    assert sorted(named) == sorted(set(named)), "a module is named twice"
    assert set(named) == modules(root)


def test_every_example_has_its_line() -> None:
    named = set(re.findall(r"\((\w+\.py)\)", text("examples/README.md")))
    assert named == {path.name for path in (REPOSITORY / "examples").glob("*.py")}


# --- links -----------------------------------------------------------------------------------------------------------


def links(page: str) -> Iterator[str]:
    """Targets of links and pictures, outside of code."""
    prose = re.sub(r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", "", text(page), flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        inside = path.resolve().is_relative_to(REPOSITORY)
        if "://" in target or target.startswith("mailto:"):
            continue
        if not inside or not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


def test_the_links_are_found() -> None:
    assert {"docs/structure.md", "#what-runs-where", "docs/images/demo.png"} <= set(links("README.md"))
    assert "../runtime/nextscale/runtime/manifest.schema.json" in set(links("docs/manifest.md"))


# --- commands --------------------------------------------------------------------------------------------------------

COMMANDS = typer.main.get_group(importlib.import_module("nextscale.cli.main").app).commands


def code(page: str) -> Iterator[str]:
    """Indented lines and fenced ones, continued lines joined, and code within prose."""
    found = text(page).replace("\\\n", " ")
    yield from re.findall(r"^ {4,}(\S.*)$", found, re.MULTILINE)
    yield from (
        line
        for block in re.findall(r"^```\w*\n(.*?)^```", found, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    )
    yield from re.findall(r"`([^`\n]+)`", found)


def commands(page: str) -> Iterator[list[str]]:
    """Every call of ``nextscale`` with a subcommand, as its words."""
    for line in code(page):
        match = re.match(r"(?:\$ )?nextscale ([a-z]\w*.*)", line)
        if match:
            yield shlex.split(match[1], comments=True)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page: str) -> None:
    for name, *rest in commands(page):
        assert name in COMMANDS, f"nextscale {name}"
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        asked = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
        assert asked <= known, f"nextscale {name} has no {asked - known}"


def test_the_readme_calls_the_commands_of_the_three_jobs() -> None:
    called = {name for name, *_ in commands("README.md")}
    assert {"draw", "export", "generate", "compare", "plan", "doctor", "recipes", "demo"} <= called
    assert [word for name, *rest in commands("docs/howto-schedule.md") if name == "draw" for word in rest[-2:]] == [
        "--schedule",
        "1x1,1x2,2x3,3x5,4x7",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {m[1] for line in code(page) if (m := re.match(r"(?:\w+=\S+ )*make (\w+)", line))}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_programs_that_are_called_are_there(page: str) -> None:
    called = {m[1] for line in code(page) if (m := re.match(r"python (\w\S+\.py)", line))}
    assert all((REPOSITORY / path).is_file() for path in called)


# --- code ------------------------------------------------------------------------------------------------------------


def test_the_readme_s_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path / "demo" / "engines" / "demo-fastvar")
    monkeypatch.chdir(tmp_path)
    (program,) = blocks("README.md", "python")
    names: dict[str, object] = {}
    run(program, names)
    assert names["picture"].shape == (8, 8, 3)  # type: ignore[attr-defined]
    assert len(list((tmp_path / "out").glob("seed7-*.png"))) == 2


@pytest.mark.parametrize("page", ["docs/howto-method.md", "docs/howto-fine-tune.md"])
def test_the_code_of_the_how_tos_runs(page: str) -> None:
    pytest.importorskip("torch")
    names: dict[str, object] = {"__name__": "__main__"}
    found = blocks(page, "python")
    assert len(found) >= 2
    for block in found:
        run(block, names)


def test_the_config_of_the_how_to_is_read(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from nextscale.export.config import Config, config_beside

    (block,) = blocks("docs/howto-fine-tune.md", "json")
    (tmp_path / "config.json").write_text(block, encoding="utf-8")
    read = config_beside(tmp_path / "var.safetensors")
    assert read.schedule is not None
    assert read.schedule[-1] == (16, 16)
    assert read.class_names == ("cat", "dog")
    assert read.licence == "CC-BY-4.0"
    fields = set(Config.__dataclass_fields__) - {"path", "schedule", "norm_groups"} | {"patch_nums", "vae.norm_groups"}
    table = re.findall(r"^\| `([\w.]+)` \|", text("docs/howto-fine-tune.md"), re.MULTILINE)
    assert set(table) == fields


def test_the_sample_manifest_is_one() -> None:
    path = REPOSITORY / "engines" / "sample-manifest.json"
    content = path.read_bytes()
    manifest = manifests.loads(content)
    signatures.check(manifest)
    schema = json.loads((REPOSITORY / "runtime/nextscale/runtime/manifest.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(content), schema)
    assert manifests.dumps(manifest).encode() == content
    assert len(content) < 60_000
    assert manifest.plan.caches, "a pruned one shows more"


def test_the_exporter_s_advice_is_there() -> None:
    assert "docs/parity.md" in (REPOSITORY / "export/nextscale/export/verify.py").read_text(encoding="utf-8")
    assert "## Which layer" in text("docs/parity.md")


# --- figures ---------------------------------------------------------------------------------------------------------


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


def test_the_figures_of_infinity_on_a_cpu_are_the_committed_results() -> None:
    rows = {row["recipe"]: row for row in json.loads(text("benchmarks/results/infinity_125m.json"))["cases"]}
    (short,) = json.loads(text("benchmarks/results/infinity_125m_text64.json"))["cases"]

    def both(row: dict[str, Any]) -> tuple[str, str]:
        upstream, ours = (row["sides"][side]["total"]["median"] for side in ("upstream", "runtime"))
        return f"{upstream / ours:.2f}", f"{row['memory']['runtime']['pss'] / row['memory']['upstream']['pss']:.2f}"

    full, pruned, thirteen = (both(rows[f"infinity-125m-1m{tail}"]) for tail in ("", "-fastvar", "-fastvar13"))
    page = " ".join(text("docs/text.md").split())
    assert f"runs at {full[0]} (1M) and {pruned[0]} (1M with FastVAR)" in page
    assert f"in {full[1]} and {pruned[1]} times its memory" in page
    readme = " ".join(text("README.md").split())
    assert f"at {full[0]} to {pruned[0]} times the speed" in readme
    assert f"in {full[1]} to {pruned[1]} times its memory" in readme
    assert "run at {} times the speed in {} times the memory".format(*thirteen) in page
    assert "{} times the speed with FastVAR in {} times the memory".format(*both(short)) in page


def test_the_support_table_says_what_the_results_say() -> None:
    path = REPOSITORY / "benchmarks" / "support_table.py"
    spec = importlib.util.spec_from_file_location("support_table", path)
    assert spec is not None
    assert spec.loader is not None
    support = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(support)
    assert support.checks(), "no machine was ever checked"
    assert support.in_readme(text("README.md")) == support.table(support.checks(), support.builds())


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
