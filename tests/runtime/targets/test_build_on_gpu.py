"""The flavour ``tensorrt`` on a GPU: built for itself, with the plugin, remembering its timings."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextscale.plan.errors import InputError
from nextscale.runtime.backends.tensorrt.build import build_target
from nextscale.runtime.backends.tensorrt.library import load
from nextscale.runtime.backends.tensorrt.wishes import Wishes, choose_targets, settings_for, this_gpu
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.targets import check_machine, find_target, open_target

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.mark.parametrize("restore", ["plugin", "function"])
def test_a_target_for_this_gpu(
    tiny_pruned_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restore: str
) -> None:
    pytest.importorskip("tensorrt")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle, library = open_bundle(tiny_pruned_bundle), load("tensorrt")
    (target,) = choose_targets(library, ())
    assert target == this_gpu().sm
    settings = settings_for(bundle, library, target, Wishes(batch_sizes=(1, 2), restore=restore))
    report = build_target(bundle, settings, tmp_path / "targets", lambda stage, done, total, what: None)
    opened = open_target(find_target(bundle, "tensorrt", target, tmp_path / "targets"), bundle)
    check_machine(opened.target, "tensorrt", library.version, target, bundle.folder)
    pruned = sum(sub.kept is not None for layer in bundle.manifest.plan.steps[-1].layers for sub in layer.sub_layers)
    assert opened.engine("step_03").plugin_layers == (pruned if restore == "plugin" else 0)
    assert all(engine.scratch is not None for engine in report.target.engines)
    assert [path.suffix for path in (tmp_path / "cache" / "nextscale").iterdir()] == [".timings"]


def test_another_gpu_is_refused() -> None:
    pytest.importorskip("tensorrt")
    with pytest.raises(InputError, match="builds for the GPU that it runs on"):
        choose_targets(load("tensorrt"), ("sm53",))
