"""The one list of settings that invalidate an engine."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
from support.targets import settings_of, with_option

from nextscale.runtime.targets.folder import read_target
from nextscale.runtime.targets.manifest import Plugin, Settings
from nextscale.runtime.targets.stale import FOLLOWS, INVALIDATES, differences, stale

HASH = "a" * 64
PLUGIN = {"restore": "plugin", "plugin": Plugin("ScatterRestore", "nextscale", "1"), "kernel_sha256": HASH}
OTHERS = {
    "flavor": "tensorrt",
    "library_version": "1.8.0",
    "parser_version": None,
    "target": "sm89",
    "precision": "fp16",
    "batch_sizes": (1, 4),
    "weights": "embedded",
    "restore": "plugin",
}


def test_the_list_has_every_setting() -> None:
    names = {field.name for field in dataclasses.fields(Settings)}
    assert set(INVALIDATES) == names
    assert set(FOLLOWS) | set(FOLLOWS.values()) <= names


@pytest.mark.parametrize("field", OTHERS)
def test_another_value_invalidates_every_engine_and_is_named(built: Path, bundle: Path, field: str) -> None:
    target, wanted = read_target(built), replace(settings_of(bundle), **{field: OTHERS[field]})
    for engine in target.engines:
        (difference,) = stale(target, engine, wanted, engine.graph_sha256)
        assert (difference.field, difference.wanted) == (field, OTHERS[field])
        assert str(difference).startswith(f"{field} was ")


def test_the_same_settings_leave_every_engine_as_it_is(built: Path, bundle: Path) -> None:
    target = read_target(built)
    assert not [e for e in target.engines if stale(target, e, settings_of(bundle), e.graph_sha256)]


def test_an_option_is_named_by_itself(built: Path, bundle: Path) -> None:
    target = read_target(built)
    (difference,) = differences(target, with_option(settings_of(bundle), "tf32", "on"))
    assert str(difference) == "options.tf32 was off and is on"
    (difference,) = differences(target, with_option(settings_of(bundle), "new", "1"))
    assert str(difference) == "options.new was absent and is 1"


def test_another_kernel_invalidates_only_engines_with_the_plugin(built: Path, bundle: Path) -> None:
    wanted = replace(settings_of(bundle), **PLUGIN)
    target = replace(read_target(built), **PLUGIN, flavor=wanted.flavor)
    other = replace(wanted, kernel_sha256="b" * 64)
    plain = target.engines[0]
    assert not stale(target, plain, other, plain.graph_sha256)
    (difference,) = stale(target, replace(plain, plugin_layers=3), other, plain.graph_sha256)
    assert str(difference) == f"kernel_sha256 was {'a' * 12}... and is {'b' * 12}..."


def test_another_graph_invalidates_its_own_engine(built: Path, bundle: Path) -> None:
    target = read_target(built)
    first, second = target.engines[:2]
    assert [d.field for d in stale(target, first, settings_of(bundle), HASH)] == ["graph_sha256"]
    assert not stale(target, second, settings_of(bundle), second.graph_sha256)


def test_what_follows_from_another_setting_is_not_told_beside_it(built: Path, bundle: Path) -> None:
    target = read_target(built)
    wanted = replace(settings_of(bundle, weights="embedded"), **PLUGIN)
    assert wanted.weights_sha256
    assert [d.field for d in differences(target, wanted)] == ["weights", "restore"]
