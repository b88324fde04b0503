"""How much a comparison runs: light, so that a command line can read its defaults here."""

from __future__ import annotations

from dataclasses import dataclass

from nextscale.plan.errors import InputError


@dataclass(frozen=True)
class Options:
    """How much is run, how, and on what. None: the first bundle's own default, or as many threads as PyTorch takes.

    ``pictures`` in runs of ``batch``; run i has the seed ``seed + i``. ``warm_up`` runs of each side come first and
    count for nothing; a side that compiles has as many as it needs. ``memory`` starts a process for each side.
    ``backends`` and ``device`` are read by :func:`nextscale.compare.columns.choose`.
    """

    pictures: int = 16
    batch: int = 1
    seed: int = 0
    guidance_scale: float | None = None
    top_p: float | None = None
    temperature: float | None = None
    threads: int | None = None
    warm_up: int = 1
    memory: bool = True
    backends: tuple[str, ...] = ("eager", "onnxruntime")
    device: str | None = None

    def check(self) -> None:
        """Raises :class:`~nextscale.plan.errors.InputError` for numbers that cannot be run."""
        from nextscale.runtime.request import RANGES, check_number, check_word

        for name in ("pictures", "batch", "threads", "warm_up"):
            value, least = getattr(self, name), 0 if name == "warm_up" else 1
            if value is not None and (type(value) is not int or value < least):
                raise InputError(f"{name} is a whole number from {least} on; found {value!r}")
        if self.pictures % self.batch:
            raise InputError(f"{self.pictures} pictures cannot be made in runs of {self.batch}: take a multiple")
        check_word("seed", check_word("seed", self.seed) + self.pictures // self.batch - 1)  # the first and the last
        for name in RANGES:
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
