"""The installed version, from the distribution's metadata: written down once, in pyproject.toml."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The version of the installed distribution; ``unknown`` where the source roots are only on the import path."""
    try:
        return version("nextscale")
    except PackageNotFoundError:
        return "unknown"


__version__ = installed_version()
