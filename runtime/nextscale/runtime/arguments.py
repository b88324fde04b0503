"""What kind of value a caller gave: one or several, a whole number or not."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np


def listed(value: Any) -> list[Any] | None:
    """The items of a sequence or an array; None for what is one value: a number, text, an array without axes."""
    several = value.ndim > 0 if isinstance(value, np.ndarray) else isinstance(value, Sequence)
    return list(value) if several and not isinstance(value, (str, bytes, bytearray)) else None


def whole(value: Any) -> bool:
    """Whether it is a whole number by its type."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
