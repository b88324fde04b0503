"""The first tensor of a graph on which two sides do not agree, and every tensor's error in the order of the graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.compare.debug.record import record
from nextscale.compare.debug.runners import EAGER, Task, check, make_runner, with_outputs
from nextscale.compare.debug.terms import Place, places
from nextscale.plan.errors import EnvironmentProblem, InputError, NextscaleError
from nextscale.runtime.request import Request

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Row:
    """One tensor on both sides. ``error`` is the largest difference over max(1, std of the first side); where ``whole``
    (whole numbers and truth values) the share that differs. ``mean`` and ``largest`` are absolute."""

    place: Place
    error: float
    largest: float
    mean: float
    beyond: bool
    whole: bool = False


@dataclass(frozen=True)
class Found:
    """``rows`` are the tensors that both sides have, ``plain`` the graph's own outputs, nothing else watched.

    ``first`` is the first of ``rows`` beyond the tolerance.
    """

    graph: str
    sides: tuple[str, str]
    tolerance: float
    rows: tuple[Row, ...]
    plain: tuple[Row, ...]

    @property
    def first(self) -> Row | None:
        """The first tensor that differs, None where all agree."""
        return next((row for row in self.rows if row.beyond), None)

    @property
    def agrees(self) -> bool:
        """Whether no tensor differs, watched or not."""
        return not any(row.beyond for row in (*self.rows, *self.plain))

    @property
    def sentence(self) -> str:
        """What was found, in one."""
        a, b = self.sides
        if (row := self.first) is not None:
            reads = f", which reads {' and '.join(row.place.weights)}" if row.place.weights else ""
            start = f"{self.graph}: {a} and {b} first differ at {row.place.words} ({row.place.operator}{reads})"
            if row.whole:
                return (
                    f"{start}: {100 * row.error:.2g} % of {row.place.tensor}, whole numbers; where values that a "
                    "choice is made from tie to rounding, two correct sides may choose differently, and what follows "
                    "differs too"
                )
            return f"{start}: {row.place.tensor} by {row.error:.2g} ({self.tolerance:.0e} is allowed)"
        if outside := [row.place.tensor for row in self.plain if row.beyond]:
            return (
                f"{self.graph}: {a} and {b} differ at {', '.join(outside)}, and agree on all {len(self.rows)} tensors "
                "once each of them is an output: what differs is how nodes are joined; look at fewer with --only"
            )
        return f"{self.graph}: {a} and {b} agree on all {len(self.rows)} tensors within {self.tolerance:.0e}"


def find(one: Task, other: Task, request: Request, tolerance: float, only: str = "") -> Found:
    """Runs both sides on the inputs of a real picture, recorded from ``one``'s bundle.

    ``only`` watches tensors whose names begin with it. First the graphs run as they are, then with every tensor an
    output: joined nodes come apart by that, so the two are told apart. Raises a
    :class:`~nextscale.plan.errors.NextscaleError`.
    """
    check((one, other))
    feed = record(one.bundle, one.graph, request)
    every = places(with_outputs(one.path, ()))
    inside = [place.tensor for place in every if place.tensor.startswith(only)]
    if not inside:
        raise InputError(f"{one.graph.name} has no tensor whose name begins with {only!r}, as {every[0].tensor!r} does")
    plain = _rows(_run((one, other), (), feed), every, tolerance)
    rows = _rows(_run((one, other), inside, feed), every, tolerance)
    if not rows:
        raise InputError(f"{_name(one)} and {_name(other)} have no tensor in common")
    return Found(one.graph.name, _names(one, other), tolerance, tuple(rows), tuple(plain))


def _names(one: Task, other: Task) -> tuple[str, str]:
    if one.bundle.folder != other.bundle.folder:
        return f"{one.bundle.folder.name} on {one.backend}", f"{other.bundle.folder.name} on {other.backend}"
    return _name(one), _name(other)


def _name(task: Task) -> str:
    return "eager PyTorch" if task.backend == EAGER else task.backend


def _run(tasks: Sequence[Task], watched: Sequence[str], feed: Mapping[str, Any]) -> list[Outputs]:
    """What both sides make of the same inputs, by Polygraphy's comparator."""
    comparator = import_module("polygraphy.comparator").Comparator
    logger = import_module("polygraphy.logger").G_LOGGER
    failure = import_module("polygraphy.exception").PolygraphyException
    both: list[Outputs] = []

    def keep(first: Outputs, second: Outputs) -> OrderedDict[str, bool]:
        both.extend({name: np.asarray(side[name]) for name in side} for side in (first, second))
        return OrderedDict()

    try:
        with logger.verbosity(logger.CRITICAL + 1):
            runners = [make_runner(task, watched, feed) for task in tasks]
            for number, runner in enumerate(runners):
                runner.name = f"{number}: {runner.name}"
            results = comparator.run(runners, data_loader=[OrderedDict(feed)])
            comparator.compare_accuracy(results, compare_func=keep)
    except failure as error:
        if isinstance(error.__context__, NextscaleError):
            raise error.__context__ from error
        said = str(error).strip().splitlines()[0][:300]
        raise EnvironmentProblem(f"the two sides cannot be run on the same inputs: {said}") from error
    return both


def _rows(both: Sequence[Outputs], every: Sequence[Place], tolerance: float) -> list[Row]:
    """Every tensor that both have, in the order of the graph."""
    one, other = both
    shared = [place for place in every if place.tensor in one and place.tensor in other]
    return [compared(place, one[place.tensor], other[place.tensor], tolerance) for place in shared]


def compared(place: Place, one: NDArray[Any], other: NDArray[Any], tolerance: float) -> Row:
    """One tensor, as both sides made it."""
    if one.shape != other.shape or one.size == 0:
        same = one.shape == other.shape
        return Row(place, 0.0 if same else np.inf, 0.0 if same else np.inf, 0.0 if same else np.inf, not same)
    a, b = one.astype(np.float64), other.astype(np.float64)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))  # infinities that both have are no difference
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.where(equal, 0.0, np.abs(a - b))
    differences[np.isnan(differences)] = np.inf
    largest, mean = float(differences.max()), float(differences.mean())
    if one.dtype.kind not in "fc":
        return Row(place, float(np.mean(~equal)), largest, mean, not bool(equal.all()), whole=True)
    spread = float(a[np.isfinite(a)].std()) if np.isfinite(a).any() else 0.0
    error = largest / max(1.0, spread)
    return Row(place, error, largest, mean, error > tolerance)
