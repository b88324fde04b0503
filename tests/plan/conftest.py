"""No test of ours asserts a time, hypothesis's deadline included: the first import of a library is slow."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
