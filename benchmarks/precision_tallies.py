"""What ``bench_precision.py`` counts: errors of logits and pixels, equal tokens, verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nextscale.export.models.step import Prediction


@dataclass
class Errors:
    """Sums over float32 values and over what half precision makes of them."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    error_squares: float = 0.0
    largest: float = 0.0

    def add(self, wanted: NDArray[np.float32], got: NDArray[np.float32]) -> None:
        """Of arrays of one shape."""
        exact = wanted.astype(np.float64)
        error = got - exact
        self.count += exact.size
        self.total += float(exact.sum())
        self.squares += float(np.square(exact).sum())
        self.error_squares += float(np.square(error).sum())
        self.largest = float(np.maximum(self.largest, np.abs(error).max()))  # NaN stays NaN

    @property
    def std(self) -> float:
        """Standard deviation of the float32 values."""
        return math.sqrt(self.squares / self.count - (self.total / self.count) ** 2)

    @property
    def rms(self) -> float:
        """Root mean square of the errors, in the values' own unit."""
        return math.sqrt(self.error_squares / self.count) if self.count else math.nan


@dataclass
class Matches:
    """How many of so many tokens are float32's."""

    equal: int = 0
    tokens: int = 0

    def add(self, wanted: Prediction, got: Prediction) -> None:
        """Of one step of a batch."""
        self.equal += int((wanted.tokens == got.tokens).sum())
        self.tokens += wanted.tokens.numel()


def share(matches: Iterable[Matches]) -> float:
    """Of all tokens that are counted, how many are equal: 0 to 1."""
    counted = list(matches)
    return sum(m.equal for m in counted) / sum(m.tokens for m in counted)


@dataclass
class Forced:
    """One variant under forced tokens: logits and draws by step; pixels, in units of 1 / 255."""

    logits: list[Errors]
    draws: list[Matches]
    pixels: Errors = field(default_factory=Errors)

    def add(self, wanted: Sequence[Prediction], got: Sequence[Prediction]) -> None:
        """A batch's steps; float32's come first."""
        for errors, draws, a, b in zip(self.logits, self.draws, wanted, got, strict=True):
            errors.add(a.logits.numpy(), b.logits.float().numpy())
            draws.add(a, b)

    def report(self) -> dict[str, Any]:
        """Errors of logits are in units of their step's standard deviation; None where some are not finite."""
        errors = [(e.rms / e.std, e.largest / e.std) for e in self.logits]
        weighted = sum(e.count * rms**2 for e, (rms, _) in zip(self.logits, errors, strict=True))
        return {
            "rms": finite(math.sqrt(weighted / sum(e.count for e in self.logits))),
            "rms_worst_step": finite(np.max([rms for rms, _ in errors])),
            "largest": finite(np.max([largest for _, largest in errors])),
            "equal_forced": share(self.draws),
            "pixels": finite(self.pixels.rms),
            "pixels_largest": finite(self.pixels.largest),
            "steps": [
                {"std": e.std, "rms": finite(rms), "largest": finite(largest), "equal_forced": share([d])}
                for e, (rms, largest), d in zip(self.logits, errors, self.draws, strict=True)
            ],
        }


@dataclass
class Free:
    """One variant that draws for itself: whether the judge sees the class that was asked for; equal tokens by step."""

    draws: list[Matches]
    right: list[NDArray[np.bool_]] = field(default_factory=list)

    def add(self, right: NDArray[np.bool_], wanted: Sequence[Prediction], got: Sequence[Prediction]) -> None:
        """A batch: verdicts (B,), and its steps, float32's first."""
        self.right.append(right)
        for draws, a, b in zip(self.draws, wanted, got, strict=True):
            draws.add(a, b)


def finite(value: float) -> float | None:
    """A number that JSON knows; None for NaN and infinity."""
    return float(value) if math.isfinite(value) else None
