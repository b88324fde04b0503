"""What the documentation says is there: modules, links, commands, options, code."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import typer
from support.bundles import write_bundle

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
