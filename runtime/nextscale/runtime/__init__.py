"""The runtime: opens a bundle and makes pictures, without PyTorch."""

from __future__ import annotations

from nextscale.runtime._version import __version__

__all__ = ["__version__"]
