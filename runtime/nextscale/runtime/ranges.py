"""Named ranges around graphs, for profilers that read NVTX; nothing where the package ``nvtx`` is not installed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from types import ModuleType

DOMAIN = "nextscale"


def span(name: str) -> AbstractContextManager[object]:
    """A range of that name in the domain ``nextscale``, shown by Nsight Systems and its like."""
    nvtx = _nvtx()
    return nullcontext() if nvtx is None else nvtx.annotate(name, domain=DOMAIN)


@cache
def _nvtx() -> ModuleType | None:
    try:
        return import_module("nvtx")
    except ImportError:
        return None
