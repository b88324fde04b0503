"""What can go wrong between a bundle on disk and a picture."""

from __future__ import annotations

from nextscale.plan.errors import EnvironmentProblem, InputError, NextscaleError


class ManifestError(InputError):
    """A manifest that cannot be read, or that contradicts itself; the message names the place in the JSON."""


class BundleError(InputError):
    """A bundle folder whose files are not what its manifest lists."""


class BackendError(EnvironmentProblem):
    """A backend that was asked for and is not there, or that refuses the bundle's graphs."""


class PipelineTimeout(NextscaleError, TimeoutError):
    """No slot became free in time, or a call ran past its timeout; stopped between two steps."""

    exit_status = 3


class PipelineClosed(NextscaleError, RuntimeError):
    """The pipeline was closed before or during the call."""

    exit_status = 3


class Cancelled(NextscaleError):
    """The caller's cancellation was seen between two steps."""

    exit_status = 130


class NonFiniteError(NextscaleError, ArithmeticError):
    """NaN or infinity in a result: weights or a graph are broken; no picture is returned."""

    exit_status = 4
