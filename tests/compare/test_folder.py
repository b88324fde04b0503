from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nextscale.compare.folder import Listing, check_writable, claimed, replaced
from nextscale.compare.report import KEYS, LISTING
from nextscale.plan.errors import EnvironmentProblem, InputError

OURS = Listing("list.json", lambda found: found.get("by") == "us", re.compile(r"[a-z.]+|pictures/[a-z]+\.png"))


def make(folder: Path, *names: str) -> None:
    with replaced(folder, OURS) as place:
        (place / "list.json").write_text(json.dumps({"by": "us", "files": names}))
        for name in names:
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text("made")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_second_time_replaces_what_the_first_made(tmp_path: Path) -> None:
    make(tmp_path / "r", "a.html", "pictures/old.png")
    make(tmp_path / "r", "a.html", "pictures/new.png")
    assert names(tmp_path / "r") == {"list.json", "a.html", "pictures/new.png"}


def test_what_others_put_there_stays(tmp_path: Path) -> None:
    make(tmp_path / "r", "pictures/a.png")
    (tmp_path / "r/pictures/mine.png").write_text("mine")
    make(tmp_path / "r", "pictures/b.png")
    assert names(tmp_path / "r") == {"list.json", "pictures/mine.png", "pictures/b.png"}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    make(tmp_path, "a")
    assert names(tmp_path) == {"list.json", "a"}


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"by": "us", "files": 3}', '{"files": ["thesis.tex"]}'])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    if content is not None:
        (tmp_path / "list.json").write_text(content)
    before = names(tmp_path)
    with pytest.raises(InputError, match="not a folder of this command"):
        make(tmp_path, "a")
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["../out.txt", "/etc/passwd", "a/../../out.txt", "a/b/c", "Mine", "pictures/Mine.png"])
def test_a_list_removes_nothing_that_the_command_does_not_write(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "out.txt"
    outside.write_text("mine")
    folder = tmp_path / "r"
    make(folder, "a")
    (folder / "pictures").mkdir()
    for mine in ("Mine", "pictures/Mine.png"):
        (folder / mine).write_text("mine")
    (folder / "list.json").write_text(json.dumps({"by": "us", "files": [name, "a"]}))
    make(folder, "b")
    assert outside.exists()
    assert names(folder) == {"list.json", "b", "Mine", "pictures/Mine.png"}


def test_a_linked_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.png").write_text("mine")
    make(tmp_path / "r", "a")
    (tmp_path / "r/pictures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "r/list.json").write_text(json.dumps({"by": "us", "files": ["pictures/a.png"]}))
    make(tmp_path / "r", "b")
    assert (tmp_path / "elsewhere/a.png").exists()


def claim(folder: Path, *folders: str) -> None:
    claimed(folder, "list.json", ["a.png"], folders)
    (folder / "a.png").write_text("made")
    for name in folders:
        (folder / name).mkdir(parents=True)
        (folder / name / "whole").write_text("made")


def test_claimed_folders_are_removed_whole_and_nothing_beside_them(tmp_path: Path) -> None:
    claim(tmp_path / "r", "engines/x", "engines/y")
    (tmp_path / "r/engines/x/more").write_text("left by an interrupted run")
    (tmp_path / "r/engines/mine").write_text("mine")
    claim(tmp_path / "r", "engines/x", "engines/y")
    assert names(tmp_path / "r") == {"list.json", "a.png", "engines/mine", "engines/x/whole", "engines/y/whole"}


def test_a_claim_needs_an_empty_folder_or_an_earlier_claim(tmp_path: Path) -> None:
    (tmp_path / "engines/x").mkdir(parents=True)
    (tmp_path / "engines/x/mine").write_text("mine")
    with pytest.raises(InputError, match="not a folder of this command"):
        claim(tmp_path, "engines/x")
    assert names(tmp_path) == {"engines/x/mine"}


@pytest.mark.parametrize("folders", [["src"], ["x", ".."], ["x", 1], 3])
def test_another_claim_is_refused_and_removes_nothing(tmp_path: Path, folders: object) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/mine").write_text("mine")
    (tmp_path / "list.json").write_text(json.dumps({"files": ["a.png"], "folders": folders}))
    with pytest.raises(InputError, match="not a folder of this command"):
        claim(tmp_path, "x")
    assert names(tmp_path) == {"src/mine", "list.json"}


def test_a_claim_does_not_follow_links(tmp_path: Path) -> None:
    claim(tmp_path / "r", "linked/deep")
    (tmp_path / "r/linked").rename(tmp_path / "other")
    (tmp_path / "r/linked").symlink_to(tmp_path / "other")
    claimed(tmp_path / "r", "list.json", ["a.png"], ["linked/deep"])
    assert (tmp_path / "other/deep/whole").exists()


REPORT = {"schema_version": 1, "files": ["thesis.tex", "report.html"], **dict.fromkeys(KEYS)}


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"schema_version": None}, {"files": "report.html"}], ids=str)
def test_a_report_is_known_by_its_version_and_keys(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "report.html").write_text("mine")
    for content in (REPORT | change, {"files": REPORT["files"], "schema_version": 1}):
        (tmp_path / "report.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="not a folder of this command"), replaced(tmp_path, LISTING):
            pass
    assert (tmp_path / "report.html").exists()


def test_a_report_removes_only_what_a_report_has(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    for name in ("thesis.tex", "report.html"):
        (tmp_path / name).write_text("words")
    with replaced(tmp_path, LISTING):
        assert names(tmp_path) == {"thesis.tex"}


def test_a_check_for_writing_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/a/b"):
        with pytest.raises(EnvironmentProblem, match=f"{place} cannot be written"):
            check_writable(place)
    assert names(tmp_path) == {"file"}
