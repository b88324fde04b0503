"""Targets: what a backend built from a bundle for one GPU, in a folder with a manifest of its own."""

from __future__ import annotations

from nextscale.runtime.targets.folder import OpenTarget, check_machine, find_target, open_target
from nextscale.runtime.targets.manifest import Engine, Plugin, Settings, Target

__all__ = ["Engine", "OpenTarget", "Plugin", "Settings", "Target", "check_machine", "find_target", "open_target"]
