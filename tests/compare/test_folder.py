from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextscale.compare.folder import claimed, replaced
from nextscale.plan.errors import InputError


def make(folder: Path, *names: str) -> None:
    with replaced(folder, "list.json") as place:
        (place / "list.json").write_text(json.dumps({"files": names}))
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


@pytest.mark.parametrize("content", [None, "no json", "[]", '{"files": 3}'])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    if content is not None:
        (tmp_path / "list.json").write_text(content)
    before = names(tmp_path)
    with pytest.raises(InputError, match="not a folder of this command"):
        make(tmp_path, "a")
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", ["../out.txt", "/etc/passwd", "a/../../out.txt", "a/b/c", ".hidden"])
def test_a_list_removes_nothing_elsewhere(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "out.txt"
    outside.write_text("mine")
    folder = tmp_path / "r"
    make(folder, "a")
    (folder / "list.json").write_text(json.dumps({"files": [name, "a"]}))
    make(folder, "b")
    assert outside.exists()
    assert names(folder) == {"list.json", "b"}


def test_a_linked_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.png").write_text("mine")
    make(tmp_path / "r", "a")
    (tmp_path / "r/pictures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "r/list.json").write_text(json.dumps({"files": ["pictures/a.png"]}))
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
    claim(tmp_path / "r", "engines/x")
    assert names(tmp_path / "r") == {"list.json", "a.png", "engines/mine", "engines/x/whole"}


def test_a_claim_needs_an_empty_folder_or_an_earlier_claim(tmp_path: Path) -> None:
    (tmp_path / "engines/x").mkdir(parents=True)
    (tmp_path / "engines/x/mine").write_text("mine")
    with pytest.raises(InputError, match="not a folder of this command"):
        claim(tmp_path, "engines/x")
    assert names(tmp_path) == {"engines/x/mine"}


@pytest.mark.parametrize("name", ["..", "../other", "linked", "linked/deep"])
def test_a_claim_removes_nothing_elsewhere(tmp_path: Path, name: str) -> None:
    claim(tmp_path / "r", "x")
    (tmp_path / "other/deep").mkdir(parents=True)
    (tmp_path / "other/deep/mine").write_text("mine")
    (tmp_path / "r/linked").symlink_to(tmp_path / "other")
    (tmp_path / "r/list.json").write_text(json.dumps({"files": [], "folders": [name, "x"]}))
    claim(tmp_path / "r", "x")
    assert (tmp_path / "other/deep/mine").exists()
