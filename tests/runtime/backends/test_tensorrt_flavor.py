"""What only the flavour ``tensorrt`` does: plugins and timings, on a library and a GPU that are stubs."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tensorrt_rtx
from support.bundles import write_bundle

from nextscale.plan.errors import InputError
from nextscale.plugins import kernel
from nextscale.plugins.signature import DOMAIN, NAME
from nextscale.runtime.backends.tensorrt import build, engine, wishes, worker
from nextscale.runtime.backends.tensorrt.library import Library
from nextscale.runtime.backends.tensorrt.wishes import Gpu, Wishes, choose_targets, settings_for
from nextscale.runtime.bundle import Bundle, open_bundle
from nextscale.runtime.errors import BackendError
from nextscale.runtime.targets.manifest import Plugin

FLAVOR = Library("tensorrt", tensorrt_rtx)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_bundle(tmp_path_factory.mktemp("small") / "tiny"))


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
@pytest.mark.parametrize("asked", [(), ("sm86",)])
def test_without_a_gpu_it_says_so_and_names_the_other_flavour(asked: tuple[str, ...]) -> None:
    with pytest.raises(BackendError) as caught:
        choose_targets(FLAVOR, asked)
    said = str(caught.value)
    assert said.startswith("the flavour tensorrt was asked for, which builds on the GPU that it builds for")
    assert "without a GPU" in said
    assert "--flavor tensorrt-rtx" in said
    assert "\n" not in said


def test_it_builds_for_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes, "this_gpu", lambda: Gpu("A card", "sm90"))
    assert choose_targets(FLAVOR, ()) == choose_targets(FLAVOR, ("sm90",)) == ("sm90",)
    with pytest.raises(InputError, match=r"here A card \(sm90\), not for sm86"):
        choose_targets(FLAVOR, ("sm86",))


def test_the_plugin_restores_from_sm80_on_and_the_function_before(small: Bundle) -> None:
    for target in ("sm80", "sm90", "sm120"):
        settings = settings_for(small, FLAVOR, target, Wishes())
        assert settings.restore == "plugin"
        assert settings.plugin == Plugin(NAME, DOMAIN, "1")
        assert settings.kernel_sha256 == kernel.source_hash()
    old = settings_for(small, FLAVOR, "sm75", Wishes())
    assert (old.restore, old.plugin, old.kernel_sha256) == ("function", None, None)
    with pytest.raises(InputError, match=r"needs a GPU of sm80 or newer, and this is for sm75: .*--restore function"):
        settings_for(small, FLAVOR, "sm75", Wishes(restore="plugin"))


class Config:
    """A builder's configuration that takes the timing caches of one library version."""

    def __init__(self) -> None:
        self.cache: Any = None

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(content=content, serialize=lambda: memoryview(content + b" and more"))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content == b"another version's":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


def test_timings_go_in_and_out_and_those_of_another_version_are_left() -> None:
    for content, starts in ((b"known", b"known"), (b"", b""), (b"another version's", b"")):
        config = Config()
        FLAVOR.set_timing_cache(config, content)
        assert config.cache.content == starts
        assert FLAVOR.timing_cache(config) == starts + b" and more"
    other, untouched = Library("tensorrt-rtx", tensorrt_rtx), Config()
    other.set_timing_cache(untouched, b"known")
    assert untouched.cache is None
    assert other.timing_cache(untouched) == b""


def test_timings_are_replaced_whole_and_a_file_in_the_way_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, written = tmp_path / "cache" / "a.timings", list[str]()
    write = Path.write_bytes

    def note(path: Path, content: bytes) -> int:
        written.append(path.name)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", note)
    for content in (b"one", b"two"):
        engine._keep(path, content)
        assert path.read_bytes() == content
    assert written == [f"a.timings.{os.getpid()}.partial"] * 2  # no two processes write one file
    assert [file.name for file in path.parent.iterdir()] == ["a.timings"]
    with caplog.at_level(logging.INFO, "nextscale.tensorrt"):
        engine._keep(path / "below" / "a.timings", b"three")
    assert "is not kept" in caplog.text


def test_a_gpu_is_asked_once_for_all_engines(small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, jobs = [], list[engine.Job]()

    def gpu() -> Gpu:
        asked.append(1)
        return Gpu("NVIDIA H200 (x)", "sm90")

    class Builder:
        def __init__(self, settings: Any) -> None: ...
        def __enter__(self) -> Builder:
            return self

        def __exit__(self, *error: object) -> None: ...
        def build(self, job: engine.Job, tell: Any) -> engine.Built:
            jobs.append(job)
            Path(job.out).write_bytes(b"engine")
            return engine.Built(0.1, 3, 0, None)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "this_gpu", gpu)
    monkeypatch.setattr(build, "Builder", Builder)
    monkeypatch.setattr(build, "load", lambda flavor: FLAVOR)
    settings = settings_for(small, FLAVOR, "sm90", Wishes())
    build.build_target(small, settings, tmp_path / "t", lambda *told: None)
    assert len(asked) == 1
    assert len(jobs) == len(small.manifest.graphs)
    name = f"tensorrt-{FLAVOR.version}-NVIDIA-H200-x-.timings"
    assert {job.timing_cache for job in jobs} == {str(tmp_path / "cache" / "nextscale" / name)}


def test_scratch_is_told_for_every_batch_size(small: Bundle) -> None:
    sizes = [1000, 3000]
    made = SimpleNamespace(num_optimization_profiles=2, get_device_memory_size_for_profile_v2=sizes.__getitem__)
    module: Any = SimpleNamespace(
        __version__="11.0",
        ILogger=tensorrt_rtx.ILogger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine={b"engine": made}.get),
    )
    settings = settings_for(small, FLAVOR, "sm90", Wishes(batch_sizes=(1, 4)))
    library = Library("tensorrt", module)
    assert engine._scratch(library, settings, b"engine", "begin") == {"1": 1000, "4": 3000}
    with pytest.raises(BackendError, match="does not accept the engine begin"):
        engine._scratch(library, settings, b"other", "begin")
    assert engine._scratch(Library("tensorrt-rtx", tensorrt_rtx), settings, b"engine", "begin") is None


@pytest.fixture
def registering(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[str, str]]]:
    """A library whose registry of plugins is a list of what was given to it."""
    given: list[tuple[str, str]] = []
    plugin: Any = ModuleType("stub_tensorrt.plugin")

    def decorator(kind: str) -> Any:
        def decorate(name: str) -> Any:
            def take(function: Any) -> Any:
                given.append((kind, name))
                setattr(plugin.op, DOMAIN, SimpleNamespace(**{NAME: function}))
                return function

            return take

        return decorate

    for kind in ("register", "autotune", "aot_impl"):
        setattr(plugin, kind, decorator(kind))
    for name in ("TensorDesc", "KernelLaunchParams", "SymExprs", "AutoTuneCombination"):
        setattr(plugin, name, type(name, (), {}))
    plugin.op = SimpleNamespace()
    module: Any = ModuleType("stub_tensorrt")
    module.ILogger, module.__version__ = tensorrt_rtx.ILogger, "11.0"
    monkeypatch.setitem(sys.modules, "stub_tensorrt", module)
    monkeypatch.setitem(sys.modules, "stub_tensorrt.plugin", plugin)
    return Library("tensorrt", module), given


def test_the_builders_process_registers_the_plugin_once(registering: tuple[Any, list[tuple[str, str]]]) -> None:
    library, given = registering
    for _ in range(2):
        worker._register(library)
    assert given == [(kind, f"{DOMAIN}::{NAME}") for kind in ("register", "autotune", "aot_impl")]
