"""What the figures of the suite have to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from suite_subjects import FULL, INT8, OURS, SIDES, UPSTREAM, Contender

Row = dict[str, Any]
D16, D36, DEMO = "d16", "d36-512", "demo"
ROOFLINE, OWN_SHARE, OWN_STEP, LOST = 0.7, 0.01, 0.002, 1.0


@dataclass(frozen=True)
class Faster:
    """``mine`` has to be so many times as fast as ``theirs``, in the transformer part."""

    subject: str
    mine: Contender
    theirs: Contender
    times: float


def _ours(variant: str) -> Contender:
    return Contender(OURS, variant)


FASTER = (
    Faster(D16, _ours(FULL), Contender(UPSTREAM, FULL), 1.3),
    Faster(D16, _ours("fastvar 60, 40 %"), Contender(UPSTREAM, FULL), 1.7),
    Faster(D16, _ours("fastvar 60, 40 %"), Contender(UPSTREAM, "fastvar 60, 40 %"), 1.25),
    Faster(D16, _ours(INT8), Contender(UPSTREAM, FULL), 2.6),
    Faster(D16, _ours(INT8), _ours(FULL), 1.7),
    Faster(D36, _ours("fastvar 60, 50 %"), Contender(UPSTREAM, FULL), 1.9),
    Faster(D36, _ours("fastvar 60, 50 %"), Contender(UPSTREAM, "fastvar 60, 50 %"), 1.25),
    Faster(D36, _ours("fastvar 40, 25 %"), Contender(UPSTREAM, FULL), 2.5),
    Faster(D36, _ours("fastvar 40, 25 %"), Contender(UPSTREAM, "fastvar 40, 25 %"), 1.25),
)


def bars(report: Row) -> list[Row]:
    """Every bar whose figures are there: what it says, its value, ``at_least`` or ``at_most``, whether it is met."""
    seen: Row = report["seen"]
    rows = [*faster(report), *parts(seen), *own(report)]
    precisions = {variant["name"]: variant["precision"] for variant in report["variants"]}
    for variant, line in report["roofline"].items():
        if str(_ours(variant)) in seen and precisions[variant] == "fp32":
            value = line["total"] / median(seen, _ours(variant), "transformer")
            rows.append(least(f"{_ours(variant)}: share of the roofline, transformer", value, ROOFLINE))
    return rows


def accuracy(report: Row, known: Mapping[str, Row]) -> Iterator[Row]:
    """What int8 may cost the demo model, in points; ``known`` is what was judged of each variant."""
    if report["subject"] == D16 and INT8 in known and str(_ours(INT8)) in report["seen"]:
        bound = 100 * known[INT8]["accuracy_loss_upper_bound"]
        yield most("int8: points of accuracy that the demo model loses, by a 95 % bound", bound, LOST)


def faster(report: Row) -> Iterator[Row]:
    """How many times as fast one contender is as another."""
    seen: Row = report["seen"]
    for bar in FASTER:
        if bar.subject == report["subject"] and {str(bar.mine), str(bar.theirs)} <= {*seen}:
            value = median(seen, bar.theirs, "transformer") / median(seen, bar.mine, "transformer")
            yield least(f"{bar.mine}: times as fast as {bar.theirs}, transformer", value, bar.times)


def parts(seen: Row) -> Iterator[Row]:
    """No part of the full model may be slower than any peer's."""
    mine, peers = _ours(FULL), [Contender(side, FULL) for side in SIDES if side != OURS]
    there = [peer for peer in peers if str(peer) in seen]
    if str(mine) not in seen or not there:
        return
    for part in ("transformer", "decode"):
        best = min(there, key=lambda peer: median(seen, peer, part))
        yield least(f"{mine}: {part}, against the fastest peer ({best.side})", *_ratio(seen, best, mine, part))
    steps = [name for name in seen[str(mine)]["graphs"] if name.startswith("step")]
    worst, best = min(
        ((step, peer) for step in steps for peer in there), key=lambda at: _ratio(seen, at[1], mine, at[0])[0]
    )
    yield least(f"{mine}: {worst}, the worst against a peer ({best.side})", *_ratio(seen, best, mine, worst))


def own(report: Row) -> Iterator[Row]:
    """The runtime's own time, noise apart."""
    one = report["seen"].get(str(_ours(FULL)))
    if one is None or "own" not in one:
        return
    if report["subject"] == D16:
        value = one["own"]["median"] / one["picture"]["median"]
        yield most("the runtime's own time, as a share of a picture", value, OWN_SHARE)
    if report["subject"] == DEMO:
        value = one["own"]["median"] / len(report["grids"])
        yield most("the runtime's own time per step, s", value, OWN_STEP)


def median(seen: Mapping[str, Any], contender: Contender, part: str) -> float:
    """Seconds of ``picture``, ``transformer`` or a graph."""
    one = seen[str(contender)]
    found: float = (one[part] if part in ("picture", "transformer") else one["graphs"][part])["median"]
    return found


def least(what: str, value: float, bar: float) -> Row:
    """A bar from below."""
    return {"what": what, "value": value, "at_least": bar, "met": value >= bar}


def most(what: str, value: float, bar: float) -> Row:
    """A bar from above."""
    return {"what": what, "value": value, "at_most": bar, "met": value <= bar}


def _ratio(seen: Mapping[str, Any], theirs: Contender, mine: Contender, part: str) -> tuple[float, float]:
    return median(seen, theirs, part) / median(seen, mine, part), 1.0
