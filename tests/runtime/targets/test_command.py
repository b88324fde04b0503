"""The command that a refusal advises builds what was there, wherever that lies."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.targets import NAME, edit_target, settings_of, with_option
from typer.testing import CliRunner

from nextscale.cli import build as command
from nextscale.cli.main import app
from nextscale.runtime.bundle import Bundle, open_bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.targets import open_target
from nextscale.runtime.targets.command import moved, rebuild_command
from nextscale.runtime.targets.manifest import Settings
from nextscale.runtime.targets.places import in_cache

BESIDE = "nextscale build engines/mine --flavor tensorrt-rtx --target sm86"


def test_only_what_differs_from_the_defaults_is_said(bundle: Path) -> None:
    usual, mine = settings_of(bundle), Path("engines/mine")
    assert rebuild_command(mine, usual) == BESIDE
    everything = with_option(with_option(usual, "tf32", "on"), "optimization_level", "5")
    everything = replace(everything, batch_sizes=(1, 4), weights="embedded")
    assert rebuild_command(mine, everything) == f"{BESIDE} --batch 1,4 --weights embedded --level 5 --tf32"
    card = replace(usual, flavor="tensorrt")
    assert rebuild_command(mine, card).endswith("--flavor tensorrt --target sm86 --restore function")
    assert rebuild_command(mine, replace(card, restore="plugin")).endswith("--flavor tensorrt --target sm86")
    assert rebuild_command(mine, replace(card, target="sm75")).endswith("--flavor tensorrt --target sm75")


def test_a_place_of_its_own_is_said_and_the_usual_ones_are_not(bundle: Path) -> None:
    opened, settings = open_bundle(bundle), settings_of(bundle)
    for usual in (None, bundle.with_name(f"{bundle.name}.targets"), in_cache(opened)):
        assert " -o " not in rebuild_command(bundle, settings, usual)
    assert rebuild_command(bundle, settings, Path("/a b")).endswith(" -o '/a b'")


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"batch_sizes": (2, 3), "optimization_level": 1},
        {"weights": "embedded", "tf32": True},
        {"restore": "function"},
    ],
)
def test_the_command_line_reads_it_as_the_same_settings(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wishes: Any
) -> None:
    settings, found = settings_of(bundle, **wishes), list[tuple[Settings, Path | None]]()

    def note(bundle: Bundle, wanted: list[Settings], out: Path | None, force: bool) -> list[Any]:
        found.extend((each, out) for each in wanted)
        return []

    monkeypatch.setattr(command, "_build", note)
    place = tmp_path / "some where"
    arguments = shlex.split(rebuild_command(bundle, settings, place))[1:]
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found == [(settings, place)]


def test_engines_for_another_gpu_keep_only_what_was_chosen(bundle: Path) -> None:
    card = replace(settings_of(bundle), flavor="tensorrt", restore="plugin")
    assert moved(card, "tensorrt-rtx", "sm86").restore == "function"
    assert moved(card, "tensorrt", "sm75").restore == "function"
    assert moved(replace(card, restore="function"), "tensorrt", "sm90").restore == "function"
    assert moved(settings_of(bundle), "tensorrt", "sm90").restore == "plugin"


def test_a_target_elsewhere_is_rebuilt_there(own_built: Path, own_bundle: Path, tmp_path: Path) -> None:
    there = own_built.rename(tmp_path / NAME)
    edit_target(there, lambda data: data["engines"].pop())
    with pytest.raises(BackendError) as caught:
        open_target(there, open_bundle(own_bundle))
    assert str(caught.value).endswith(
        f"`nextscale build {own_bundle} --flavor tensorrt-rtx --target sm86 -o {tmp_path}`"
    )
