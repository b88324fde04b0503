"""Heads of a width, by every family's rule."""

from __future__ import annotations

from nextscale.plan.errors import InputError
from nextscale.plan.types import Model


def head_dim(width: int, heads: int) -> int:
    """Channels of one head. Raises :class:`InputError` where ``heads`` do not share ``width`` evenly."""
    if width % heads:
        raise InputError(f"a width of {width} cannot be shared by {heads} heads: it must be a multiple of their number")
    return width // heads


def heads_of(was: Model, width: int) -> int:
    """How many heads ``was`` would have at another width: as many at its own, else heads of the same size."""
    return was.heads if width == was.width else max(1, width // was.head_dim)
