"""What the plan tests share: the checks that every plan must pass, and no deadlines.

No test of ours asserts a time, hypothesis's deadline included: the first import of a library is slow.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import settings

from nextscale.plan.aliasing import find_conflicts, pack
from nextscale.plan.codec import from_json, to_json
from nextscale.plan.devices import DEVICES
from nextscale.plan.draw import draw_schedule
from nextscale.plan.tables import step_table
from nextscale.plan.types import Plan
from nextscale.plan.validate import find_problems

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def sound() -> Callable[[Plan], Plan]:
    """Asserts that a plan is consistent, loses nothing in packed buffers, survives JSON, has costs and a picture."""

    def check(plan: Plan) -> Plan:
        assert find_problems(plan) == []
        assert find_conflicts(plan, pack(plan, precision="fp16")) == []
        assert from_json(json.loads(json.dumps(to_json(plan)))) == plan
        assert len(step_table(plan, DEVICES["H200"]).rows) == len(plan.steps) + 3
        assert draw_schedule(plan).count("<rect") > len(plan.steps)
        return plan

    return check
