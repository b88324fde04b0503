"""What the figures of bench_gpu.py have to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gpu_cases import LARGE, UPSTREAM

from nextscale.compare.columns import COMPILE, EAGER
from nextscale.compare.gpu_check.findings import PASSED, Finding

MEMORY, IDLE, SPEED_OF_COMPILED = 1.15, 0.03, 0.9
# How many times as fast FastVAR with the published shares has to be at 1024 px: as PyTorch in full (upstream's code and
# ours, which computes with padded texts), as upstream's own FastVAR, as our own full.
OVER_EAGER, OVER_UPSTREAM, OVER_FULL = 2.7, 1.25, 1.8

Row = dict[str, Any]


def bars(findings: Sequence[Finding]) -> list[Row]:
    """What the figures have to show, one row for each case and bar: its value, its limit, whether it is met."""
    seconds = {_key(f): f.data["median"] for f in findings if f.section == "latency" and f.state == PASSED}
    rows: list[Row] = []
    for finding in findings:
        side, case = finding.subject.get("side", ""), {k: v for k, v in finding.subject.items() if k != "side"}
        if side in (EAGER, COMPILE, UPSTREAM):
            continue

        def row(bar: str, value: float | None, limit: float, least: bool, case: Any = case, side: str = side) -> None:
            if value is not None:
                met = value >= limit if least else value <= limit
                rows.append({"bar": bar, **case, "side": side, "value": value, "limit": limit, "met": met})

        if finding.section == "parity" and finding.state != "not run":
            row("parity error", finding.data.get("error", math.inf), finding.data.get("tolerance", 0.0), False)
        if finding.state != PASSED:
            continue
        if finding.section == "memory":
            row("device memory over the sum of causes", finding.data.get("device_over_sum"), MEMORY, False)
        if finding.section == "idle" and case["batch"] == "1":
            row("idle share", finding.data["idle_share"], IDLE, False)
        if finding.section == "latency":
            pruned, own = case["recipe"].endswith("-fastvar"), finding.data["median"]
            full = {**case, "recipe": case["recipe"].removesuffix("-fastvar")}
            large = pruned and case["model"] == LARGE
            wanted = [
                *(("full", full, torch, OVER_EAGER if large else 1.0) for torch in (EAGER, UPSTREAM)),
                ("full", full, COMPILE, 1.0 if pruned else SPEED_OF_COMPILED),
            ]
            if pruned:
                wanted += [("pruned", case, EAGER, 1.0), ("pruned", case, COMPILE, SPEED_OF_COMPILED)]
            if large:
                wanted += [("pruned", case, UPSTREAM, OVER_UPSTREAM), ("full", full, side, OVER_FULL)]
            for kind, of, against, limit in wanted:
                other = seconds.get(_key_of({**of, "side": against}))
                row(f"times as fast as {kind} {against}", None if other is None else other / own, limit, True)
    return rows


def _key(finding: Finding) -> frozenset[tuple[str, str]]:
    return _key_of(finding.subject)


def _key_of(subject: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(subject.items())


def show(row: Row) -> str:
    """One line of the table of bars."""
    of = f"{row['recipe']} {row['precision']} x{row['batch']} {row['side']}"
    return f"{of:48} {row['bar']:40} {row['value']:10.3g} {row['limit']:8.2g} {'met' if row['met'] else 'MISSED'}"
