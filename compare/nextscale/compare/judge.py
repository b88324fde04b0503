"""Does parity hold? Rules over collected numbers; nothing is run here.

Logits under forced tokens and pixels must be within the tolerance of the bundle's precision. A picture that is not is
set aside only where the eager model itself does not hold still under rounding (:mod:`nextscale.compare.stability`),
and more than half of the pictures must be within the tolerance. A picture must not depend on whether it is made whole
or step by step: there nothing is allowed. Shares of equal tokens are told, not judged: one tied
draw changes every later scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextscale.compare.collect import Measured
from nextscale.compare.parity import PictureParity
from nextscale.export.verify import TOLERANCES


@dataclass(frozen=True)
class Verdict:
    """One bundle: whether parity held, its worst error in units of max(1, std), where that was, and one sentence.

    ``within``, ``undecided`` and ``wrong`` are numbers of pictures; ``where`` is a graph's name.
    """

    bundle: str
    held: bool
    tolerance: float
    error: float
    where: str
    within: int
    undecided: int
    wrong: int
    sentence: str


def judge(measured: Measured) -> tuple[Verdict, ...]:
    """A verdict for every bundle, in their order."""
    return tuple(
        verdict(bundle, parities, TOLERANCES[measured.records[bundle].spec.precision])
        for bundle, parities in measured.parities.items()
    )


def verdict(bundle: str, pictures: Sequence[PictureParity], tolerance: float) -> Verdict:
    """The rules, for one bundle."""
    outside = [p for p in pictures if not (p.error <= tolerance and p.apart == 0)]
    undecided = [p for p in outside if p.apart == 0 and p.eager_moves is not None and p.eager_moves > tolerance]
    within, wrong = len(pictures) - len(outside), len(outside) - len(undecided)
    held = wrong == 0 and 2 * within > len(pictures)
    judged = [p for p in pictures if p not in undecided] if held else pictures
    worst = max(judged, key=lambda p: p.error)
    where = _where(worst)
    return Verdict(
        bundle=bundle,
        held=held,
        tolerance=tolerance,
        error=worst.error,
        where=where,
        within=within,
        undecided=len(undecided),
        wrong=wrong,
        sentence=_apart(bundle, pictures)
        or _sentence(bundle, held, tolerance, worst, where, within, len(undecided), len(pictures)),
    )


def _apart(bundle: str, pictures: Sequence[PictureParity]) -> str:
    """Not empty where a picture depends on the way in which it was made."""
    apart = [p.apart for p in pictures if p.apart != 0]
    if not apart:
        return ""
    return (
        f"{bundle}: parity not held, {len(apart)} of {len(pictures)} pictures made whole differ from the same made "
        f"step by step, by as much as {max(apart):.2g}"
    )


def _where(picture: PictureParity) -> str:
    """The graph in which a picture's worst error is seen."""
    errors = {f"step_{i:02d}": step.error for i, step in enumerate(picture.steps)} | {"decode": picture.pixels}
    return max(errors, key=lambda graph: errors[graph] if errors[graph] == errors[graph] else float("inf"))


def _sentence(
    bundle: str, held: bool, tolerance: float, worst: PictureParity, where: str, within: int, undecided: int, n: int
) -> str:
    aside = ""
    if undecided:
        aside = f"; {undecided} of {n} set aside, for eager PyTorch itself does not decide them"
    if held:
        return f"{bundle}: parity held, worst error {worst.error:.2g} at {where} ({tolerance:.0e} is allowed){aside}"
    return (
        f"{bundle}: parity not held, {n - within} of {n} pictures differ from eager PyTorch by more than "
        f"{tolerance:.0e}, the worst by {worst.error:.2g} at {where}{aside}"
    )
