"""The runtime: opens a bundle and makes pictures, without PyTorch."""

from __future__ import annotations

from nextscale.runtime._version import __version__
from nextscale.runtime.pipeline import Pipeline
from nextscale.runtime.result import Result, StepResult

__all__ = ["Pipeline", "Result", "StepResult", "__version__"]
