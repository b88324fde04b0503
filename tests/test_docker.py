"""The Dockerfiles, as far as that can be told without Docker: syntax, pinned bases, paths, extras, the user."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = sorted((REPOSITORY / "docker").glob("Dockerfile.*"))
KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}


class Instruction(NamedTuple):
    word: str
    rest: str


def instructions(path: Path) -> list[Instruction]:
    """Comments left out, continued lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def stages(path: Path) -> list[list[Instruction]]:
    found: list[list[Instruction]] = []
    for instruction in instructions(path):
        if instruction.word == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def extras() -> set[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return set(project["optional-dependencies"])


def ignored(name: str) -> bool:
    """What .dockerignore keeps out of the context: the last rule that matches decides."""
    out = False
    for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.strip()
        if rule and not rule.startswith("#") and fnmatch.fnmatch(name, rule.removeprefix("!")):
            out = not rule.startswith("!")
    return out


def test_there_is_one_for_a_cpu_and_one_for_a_gpu() -> None:
    assert [path.name for path in FILES] == ["Dockerfile.cpu", "Dockerfile.cuda"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_instructions_are_known_and_bases_pinned(path: Path) -> None:
    assert {instruction.word for instruction in instructions(path)} <= KNOWN
    for stage in stages(path):
        assert re.match(r"[\w./-]+:\d+\.\d+[\w.-]*( AS \w+)?$", stage[0].rest), stage[0]
    names = [m[1] for stage in stages(path) if (m := re.search(r" AS (\w+)$", stage[0].rest))]
    for instruction in instructions(path):
        if m := re.match(r"--from=(\w+) ", instruction.rest):
            assert m[1] in names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_is_the_whole_wheel(path: Path) -> None:
    copied = {source.rstrip("/") for word, rest in stages(path)[0] if word == "COPY" for source in rest.split()[:-1]}
    for name in copied:
        assert (REPOSITORY / name).exists()
        assert not ignored(name), f"{name} is not in the context"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {package.partition("/")[0] for package in packages}
    needed |= {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == needed
    assert ignored("checkpoints")
    assert ignored("shared")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_extras_exist(path: Path) -> None:
    defaults = [rest.partition("=")[2] for word, rest in instructions(path) if rest.startswith("EXTRAS=")]
    named = [*defaults, *re.findall(r"EXTRAS=([\w,]+)", path.read_text(encoding="utf-8"))]
    named += re.findall(r"EXTRAS=([\w,]+)", (REPOSITORY / "docs/docker.md").read_text(encoding="utf-8"))
    assert defaults
    for text in named:
        assert set(text.split(",")) <= extras()
        assert len({*text.split(",")} & {"cpu", "cuda", "gpu"}) == 1, "one onnxruntime"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_runs_the_command_as_a_user_without_rights(path: Path) -> None:
    last = stages(path)[-1]
    words = [instruction.word for instruction in last]
    rest = dict(last)
    assert rest["USER"] not in ("root", "0")
    assert f"useradd --create-home --uid 10001 {rest['USER']}" in [r for word, r in last if word == "RUN"]
    assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")
    assert json.loads(rest["ENTRYPOINT"]) == ["nextscale"]
    assert len(json.loads(rest["CMD"])) == 1


def test_the_page_says_whether_they_were_built() -> None:
    page = (REPOSITORY / "docs/docker.md").read_text(encoding="utf-8")
    states = dict(re.findall(r"^\| \[docker/(Dockerfile\.\w+)\].*\| ([^|]+) \|$", page, re.MULTILINE))
    assert set(states) == {path.name for path in FILES}
    assert set(states.values()) <= {"built", "not built here"}
