"""Packages that extras bring: imported where they are used, and named in one sentence where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from nextscale.plan.errors import EnvironmentProblem


def imported(name: str, use: str, install: str, problem: type[EnvironmentProblem] = EnvironmentProblem) -> ModuleType:
    """The module of that name; raises ``problem``: ``use`` says what takes the package, ``install`` what brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise problem(f"{use} the package {name}, which does not import here ({error}): {install}") from error
