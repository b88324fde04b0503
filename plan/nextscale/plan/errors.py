"""The one base class of every error a user can meet, and the two kinds that all roots share."""

from __future__ import annotations


class NextscaleError(Exception):
    """Something the user can act on: says what was asked, what was found and what to do.

    ``exit_status`` is what the command line returns for it: 2 refused input, 3 environment, 4 numbers that differ.
    """

    exit_status = 2


class InputError(NextscaleError, ValueError):
    """An option, key, shape or file that is not what was asked for."""


class PlanError(InputError):
    """A plan that contradicts itself, or a method that does not fit the plan it was given."""


class EnvironmentProblem(NextscaleError, RuntimeError):
    """Something of this machine is missing: a package, a device, memory, disk space."""

    exit_status = 3


class ParityError(NextscaleError):
    """Numbers that differ by more than their tolerance."""

    exit_status = 4
