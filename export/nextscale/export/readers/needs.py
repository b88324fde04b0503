"""What reading sizes off a state dict takes: tensors that are there, with as many axes as they should have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nextscale.export.config import Config
from nextscale.export.state_dict import State
from nextscale.plan.errors import InputError
from nextscale.plan.types import Grid, Model, Tokenizer


class Reader(Protocol):
    """How one family's transformer files tell their sizes: a module of this folder."""

    @property
    def IGNORED(self) -> tuple[str, ...]:
        """Ends of keys that training keeps in the file and inference has no use for."""

    def recognises(self, state: State) -> bool:
        """Whether a state dict is of this family."""

    def model_of(self, state: State, config: Config, path: Path) -> Model:
        """The transformer's sizes; :class:`InputError` for a file that does not have them."""

    def schedule_of(self, state: State, config: Config, path: Path) -> tuple[Grid, ...] | None:
        """The scales that it was trained for; None where a file cannot tell."""

    def entries_of(self, model: Model, tokenizer: Tokenizer, schedule: tuple[Grid, ...]) -> dict[str, Any]:
        """What a ``config.json`` must say of a checkpoint; empty where its tensors tell all."""


def need(state: State, axes: Mapping[str, int], wrong: str, other: str) -> None:
    """Refuses a state dict without the tensors that sizes are read from; they have these numbers of axes, none of 0."""
    if missing := [key for key in axes if key not in state]:
        raise InputError(f"{wrong}: it lacks {', '.join(missing)}; is it {other} file?")
    if odd := [key for key, count in axes.items() if len(state[key].shape) != count or 0 in state[key].shape]:
        shapes = ", ".join(f"{key} {tuple(state[key].shape)}" for key in odd)
        raise InputError(f"{wrong}: none has tensors of the shapes {shapes}; give the file that was trained")


def count(pattern: str, state: State) -> int:
    """How many numbers the keys have there: a layer numbered far beyond the others is not that many layers."""
    return len({m[1] for key in state if (m := re.match(pattern, key))})
