"""What two ways to run a model differ by: logits under the same tokens, and the code sum that a variant leads to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from suite_faces import OurSide

from nextscale.compare.parity import drawn_tokens, moved
from nextscale.compare.sides import Ask, Run
from nextscale.plan.types import Plan


def logit_error(wanted: Run, got: Run) -> float:
    """The largest difference of guided logits in units of max(1, std) of the step's; both had the same tokens."""
    return float(moved(wanted.logits, got.logits).max())


def variant_error(full: OurSide, other: OurSide, plan: Plan, ask: Ask) -> dict[str, Any]:
    """What a variant would make of the full model's own picture: each of its steps in the context of the full tokens.

    ``other`` has the full model's tokens as its past at every step; what it would have drawn there, from the same
    noise, is put together to a code sum. ``code_sum`` is how far that is from the full model's, as a relative root mean
    square; ``equal`` the share of equal tokens, by step.
    """
    wanted = full.run(ask)
    forced = replace(ask, tokens=wanted.tokens)
    made = other.run(forced, logits=True)
    tokens = tuple(drawn_tokens(plan, step, ask, made.logits[step.order]) for step in plan.steps)
    aim, found = full.code_sum(forced), full.code_sum(replace(ask, tokens=tokens))
    apart = float(np.sqrt(np.square(found - aim).mean() / np.square(aim).mean()))
    equal = [float((a == b).mean()) for a, b in zip(tokens, wanted.tokens, strict=True)]
    return {"code_sum": apart, "equal": equal}
