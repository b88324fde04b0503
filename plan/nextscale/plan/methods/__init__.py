"""Methods: functions from plan to plan. They compose; the order is the order of application."""

from __future__ import annotations

from nextscale.plan.methods.fastvar import FastVAR

__all__ = ["FastVAR"]
