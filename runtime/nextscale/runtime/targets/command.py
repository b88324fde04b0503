"""The command that builds a target: what every refusal of one advises."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from nextscale.plugins.kernel import ARCHITECTURE
from nextscale.runtime.targets.manifest import Settings
from nextscale.runtime.targets.places import user_cache

# What `nextscale build` does where nothing is said.
BATCH_SIZES, WEIGHTS, LEVEL, TF32 = (1,), "inputs", "3", "off"


def runs_plugin(target: str) -> bool:
    """Whether a GPU takes the PTX of the plugin's kernel."""
    return int(target.removeprefix("sm")) >= int(ARCHITECTURE.removeprefix("compute_"))


def default_restore(flavor: str, target: str) -> str:
    """The plugin where the flavour takes one and the GPU runs its kernel, else the function."""
    return "plugin" if flavor == "tensorrt" and runs_plugin(target) else "function"


def build_command(bundle: Path, flavor: str, target: str, place: Path | None = None) -> str:
    """``nextscale build`` of the bundle in the folder ``bundle``, into ``place`` where that is not where it goes."""
    return f"nextscale build {quoted(bundle)} --flavor {flavor} --target {target}{out_option(bundle, place)}"


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def out_option(bundle: Path, place: Path | None) -> str:
    """`` -o FOLDER`` where ``place`` is not where the bundle's targets go by themselves, else nothing."""
    usual = bundle.with_name(f"{bundle.name}.targets")
    elsewhere = place is not None and place.resolve() != usual and user_cache() / "targets" not in place.parents
    return f" -o {quoted(place)}" if place is not None and elsewhere else ""


def rebuild_command(bundle: Path, settings: Settings, place: Path | None = None) -> str:
    """The same with every option by which ``settings`` differ from what is built where nothing is said."""
    options = {
        f"--batch {','.join(map(str, settings.batch_sizes))}": settings.batch_sizes != BATCH_SIZES,
        f"--weights {settings.weights}": settings.weights != WEIGHTS,
        f"--restore {settings.restore}": settings.restore != default_restore(settings.flavor, settings.target),
        f"--level {(level := settings.options.get('optimization_level', LEVEL))}": level != LEVEL,
        "--tf32": settings.options.get("tf32", TF32) != TF32,
    }
    command = build_command(bundle, settings.flavor, settings.target, place)
    return " ".join([command, *(option for option, differs in options.items() if differs)])


def moved(settings: Settings, flavor: str, target: str) -> Settings:
    """The same wishes for another flavour and GPU: what restores tokens stays only where it was chosen."""
    chosen = settings.restore != default_restore(settings.flavor, settings.target)
    restore = settings.restore if chosen else default_restore(flavor, target)
    return replace(settings, flavor=flavor, target=target, restore=restore)
