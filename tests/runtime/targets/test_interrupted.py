"""Builds that are interrupted: nothing half-written stands, and what was finished is the next build's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from support.targets import NAME, build, change_graph, contents, settings_of

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.tensorrt.build import kept
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.targets import open_target, publish
from nextscale.runtime.targets.manifest import FILE_NAME

GRAPHS = ("begin", "step_00", "step_01", "step_02", "step_03", "decode")


def interrupt(stage: str, done: int, total: int, what: str) -> None:
    """A build that hears of it ends before its third engine."""
    if what.startswith("step_01"):
        raise KeyboardInterrupt


def elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> Path:
    """The same folder, as it may be given with ``-o``."""
    if how == "relative":
        monkeypatch.chdir(folder.parent)
        return Path(folder.name)
    link = folder.with_name("link")
    link.symlink_to(folder.parent / "real")
    (folder.parent / "real").mkdir(exist_ok=True)
    return link


@pytest.mark.parametrize("how", ["relative", "symlink"])
def test_a_place_may_be_relative_or_a_link(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    place = elsewhere(tmp_path / "t", monkeypatch, how)
    with pytest.raises(KeyboardInterrupt):
        build(own_bundle, place, told=interrupt)
    report = build(own_bundle, place)
    assert report.resumed == ("begin", "step_00")
    said: list[str] = []
    assert build(own_bundle, place, said=said).reasons == {}
    assert said == []
    assert report.folder.is_absolute()


def test_an_interruption_while_a_target_is_written_to_disk_costs_no_engine(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path, sync: Callable[[Path], None] = publish.sync) -> None:
        if path.name == FILE_NAME:
            raise KeyboardInterrupt
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(publish, "sync", stop)
        with pytest.raises(KeyboardInterrupt):
            build(own_bundle, tmp_path / "t")
    assert [path.name for path in (tmp_path / "t").iterdir()] == [f".{NAME}.building"]
    report = build(own_bundle, tmp_path / "t")
    assert report.resumed == GRAPHS
    assert {path.name for path in report.folder.iterdir()} == {FILE_NAME, *(f"{graph}.engine" for graph in GRAPHS)}


def test_an_interruption_between_the_renames_leaves_the_old_target(
    own_built: Path, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(own_built), Path.rename

    def stop(path: Path, to: Path) -> Path:
        if path.name == f".{NAME}.building":
            raise KeyboardInterrupt
        return rename(path, to)

    change_graph(own_bundle, "step_02")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        with pytest.raises(KeyboardInterrupt):
            build(own_bundle, own_built.parent)
    assert contents(own_built) == before
    assert {path.name for path in own_built.parent.iterdir()} == {NAME, f".{NAME}.building"}
    assert build(own_bundle, own_built.parent).resumed == ("step_02",)
    assert [path.name for path in own_built.parent.iterdir()] == [NAME]


def test_a_lock_that_cannot_be_removed_fails_no_build(
    own_built: Path, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".lock":
            raise PermissionError("in use")  # as where open files cannot be removed
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    for _ in range(2):
        assert build(own_bundle, own_built.parent).reasons == {}


def test_what_an_interrupted_build_of_other_settings_left_is_not_counted_and_named(
    own_bundle: Path, tmp_path: Path
) -> None:
    place, bundle, said = tmp_path / "t", open_bundle(own_bundle), list[str]()
    first, second = settings_of(own_bundle), settings_of(own_bundle, batch_sizes=(2,))
    with pytest.raises(KeyboardInterrupt):
        build(own_bundle, place, first, told=interrupt)
    assert (kept(bundle, first, place), kept(bundle, second, place)) == (2, 0)
    assert build(own_bundle, place, second, said).resumed == ()
    assert said == [
        f"{NAME}: batch_sizes was 1 and is 2: what an interrupted build finished of begin, step_00 is not used"
    ]


def test_what_nobody_wants_any_more_does_not_stay_hidden(own_built: Path, own_bundle: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(own_bundle, own_built.parent, told=interrupt, batch_sizes=(2,))
    assert build(own_bundle, own_built.parent).reasons == {}
    assert [path.name for path in own_built.parent.iterdir()] == [NAME]


def test_force_builds_everything_again_and_keeps_nothing_of_what_is_interrupted(
    own_bundle: Path, tmp_path: Path
) -> None:
    place = tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        build(own_bundle, place, told=interrupt)
    with pytest.raises(KeyboardInterrupt):
        build(own_bundle, place, told=interrupt, force=True)
    assert not place.exists()
    assert build(own_bundle, place, force=True).resumed == ()


def test_finished_engines_of_an_interrupted_build_are_taken_up(own_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(own_bundle, tmp_path / "t", told=interrupt)
    (hidden,) = (tmp_path / "t").iterdir()
    assert hidden.name == f".{NAME}.building"
    assert {p.name for p in hidden.glob("*.engine")} == {"begin.engine", "step_00.engine"}
    with pytest.raises(BackendError, match="is not a built target"):
        open_target(hidden, open_bundle(own_bundle))
    (hidden / "step_01.engine.partial").write_bytes(b"half")
    (hidden / "step_00.engine").write_bytes(b"altered")
    report = build(own_bundle, tmp_path / "t")
    assert report.resumed == ("begin",)
    assert [path.name for path in (tmp_path / "t").iterdir()] == [NAME]
    open_target(report.folder, open_bundle(own_bundle))


def test_what_another_process_builds_is_not_built_at_the_same_time(own_bundle: Path, tmp_path: Path) -> None:
    with FileLock(tmp_path / f".{NAME}.lock"), pytest.raises(InputError, match="another build is writing"):
        build(own_bundle, tmp_path)


def test_what_was_put_aside_by_a_killed_build_comes_back(own_built: Path, own_bundle: Path) -> None:
    own_built.rename(own_built.with_name(f".{NAME}.old"))
    assert build(own_bundle, own_built.parent).reasons == {}
    assert [path.name for path in own_built.parent.iterdir()] == [NAME]
