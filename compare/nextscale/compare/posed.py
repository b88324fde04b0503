"""What the pictures of a comparison are of, by number: classes, or texts whose features are drawn.

Parity, time and memory do not depend on what a text says, so no text encoder is needed; lengths differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nextscale.plan.types import Model
from nextscale.runtime.subjects import Subject


def posed(model: Model, numbers: Sequence[int]) -> list[Subject]:
    """The classes of those numbers; of a text-conditional model, drawn features and a length for each number."""
    if model.text is None:
        return list(numbers)
    made: list[Subject] = []
    for number in numbers:
        rng = np.random.default_rng(number)
        length = int(rng.integers(max(1, model.text.tokens // 8), model.text.tokens, endpoint=True))
        made.append((rng.standard_normal((model.text.tokens, model.text.width), np.float32), length))
    return made
