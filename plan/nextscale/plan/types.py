"""The plan: pure data that fixes every number of a deployment.

Everything else (graphs, buffers, manifests, FLOP and byte counts, pictures of the schedule) is derived from it.
All types are frozen, compare by value and hold numbers, strings and tuples only; :mod:`nextscale.plan.codec` is their
JSON form. Lengths are tokens, counts are exact, indices start at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nextscale.plan.errors import PlanError
from nextscale.plan.models import Diffusion, Grid, Model, Text, Tokenizer

__all__ = [
    "Cache",
    "Diffusion",
    "Grid",
    "Guidance",
    "Layer",
    "Model",
    "NextInput",
    "Plan",
    "RowGather",
    "SCHEMA_VERSION",
    "Sampling",
    "Segment",
    "Step",
    "SubLayer",
    "Tape",
    "TapeWrite",
    "Text",
    "Tokenizer",
]

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Guidance:
    """Guidance as a weight per row: ``logits = sum_r (constant_r + slope_r * guidance_scale) * logits_r``.

    ``rows`` names the guidance rows, conditional first. ``weights[scale][row]`` is ``(constant, slope)``; a model with
    several guidance scales has one slope for each name in ``scales``: ``(constant, slope, slope, ...)``.
    """

    rows: tuple[str, ...]
    weights: tuple[tuple[tuple[float, ...], ...], ...]
    scales: tuple[str, ...] = ("guidance_scale",)


@dataclass(frozen=True)
class Tape:
    """The key and value rows of one layer (or of one group of its heads), each in one buffer.

    ``prefilled`` rows stand at its start before the first step that reads it (source image, learned memory).
    ``alternating`` tapes are replaced, not appended to, and need two buffers by turns.
    """

    id: str
    weight_set: str
    layer: int
    heads: int
    prefilled: int = 0
    alternating: bool = False


@dataclass(frozen=True)
class Segment:
    """Rows ``start .. start + length`` of a tape that a layer attends to.

    ``gate`` names a learned gate: such rows have a softmax of their own, and its output is added through the gate.
    """

    tape: str
    start: int
    length: int
    gate: str | None = None


@dataclass(frozen=True)
class TapeWrite:
    """What a layer leaves on a tape: ``length`` rows at ``start``; ``replace`` means the tape holds only these."""

    tape: str
    start: int
    length: int
    mode: str = "append"


@dataclass(frozen=True)
class SubLayer:
    """One sub-layer in one step. ``kept`` is None when every token is computed.

    ``cache`` names the restore cache that is written (``kept`` is None) or read (``kept`` is a number); None for
    neither.
    """

    name: str
    kept: int | None = None
    cache: str | None = None


@dataclass(frozen=True)
class Layer:
    """One block in one step: its sub-layers, the past it attends to and what it leaves behind."""

    index: int
    sub_layers: tuple[SubLayer, ...]
    past: tuple[Segment, ...] = ()
    writes: tuple[TapeWrite, ...] = ()

    @property
    def past_rows(self) -> int:
        """Key rows of earlier steps that share this layer's softmax."""
        return sum(s.length for s in self.past if s.gate is None)

    @property
    def tape_uses(self) -> tuple[Segment | TapeWrite, ...]:
        """Everything that the layer reads from tapes, then everything that it writes to them."""
        return (*self.past, *self.writes)

    def sub_layer(self, name: str) -> SubLayer:
        """The sub-layer of that name; raises :class:`PlanError` where the layer has none."""
        for sub in self.sub_layers:
            if sub.name == name:
                return sub
        raise PlanError(f"layer {self.index} has no sub-layer {name!r}; it has {[s.name for s in self.sub_layers]}")


@dataclass(frozen=True)
class Cache:
    """A sub-layer's full output at the cache scale, from which pruned tokens are restored."""

    id: str
    weight_set: str
    layer: int
    sub_layer: str
    grid: Grid


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, in ``order``; ``top_k`` is fixed in the graph, 0 keeps all. The rest are graph inputs.

    ``order`` names ``top_p`` right after ``top_k``, or neither: the two are one filter.
    ``smooth`` replaces the code lookup by VAR's ``more_smooth`` mixture (a second noise input); ``smooth_ratio`` is how
    far along the schedule the step counts for it, which HART holds back at its last scale.
    """

    top_k: int
    order: tuple[str, ...] = ("guidance", "temperature", "top_k", "top_p")
    smooth: bool = False
    smooth_ratio: float = 0.0


@dataclass(frozen=True)
class NextInput:
    """What a step hands on. ``rule``: ``code_sum`` (residual models), ``last_codes`` (FlexVAR), ``none``.

    ``grid`` is the next step's input grid (None after the last step); ``up`` and ``down`` are the resize modes to the
    code map and to the next input; ``phi`` the index of the residual convolution (None where there is none).
    """

    rule: str
    grid: Grid | None
    up: str = "bicubic"
    down: str = "area"
    phi: int | None = None


@dataclass(frozen=True)
class Step:
    """One forward pass of the chain. ``images`` is the number of candidates per picture (1 but for search methods).

    ``layers`` holds the layers that run, in order: a layer that is skipped is not there. ``tokens_out`` counts the
    last tokens, those that the head reads. ``diffusion``: the model's residual diffusion refines this step's codes.
    """

    order: int
    scale: int
    grid: Grid
    tokens_in: int
    tokens_out: int
    layers: tuple[Layer, ...]
    sampling: Sampling | None
    next_input: NextInput
    kind: str = "next_scale"
    weight_set: str = "var"
    guidance_rows: int = 2
    images: int = 1
    diffusion: bool = False

    @property
    def rows(self) -> int:
        """Batch rows per picture: guidance rows times candidates."""
        return self.guidance_rows * self.images


@dataclass(frozen=True)
class RowGather:
    """Between steps ``before - 1`` and ``before``, ``images_out`` of ``images_in`` candidates live on."""

    before: int
    images_in: int
    images_out: int


@dataclass(frozen=True)
class Plan:
    """Every number of a deployment. ``schedule`` is the model's full list of grids; steps may skip or repeat scales.

    ``defaults`` are the values of the run-time inputs (``guidance_scale``, ``top_p``, ``temperature``) where a caller
    names none. ``methods`` describes, in order, what was applied to the plain chain.
    """

    name: str
    models: tuple[tuple[str, Model], ...]
    tokenizer: Tokenizer
    schedule: tuple[Grid, ...]
    guidance: Guidance
    steps: tuple[Step, ...]
    tapes: tuple[Tape, ...]
    caches: tuple[Cache, ...] = ()
    gathers: tuple[RowGather, ...] = ()
    methods: tuple[str, ...] = ()
    defaults: tuple[tuple[str, float], ...] = ()
    schema_version: int = SCHEMA_VERSION

    def model(self, weight_set: str = "var") -> Model:
        """The numbers of a weight set; raises :class:`PlanError` for a name that is not there."""
        for name, model in self.models:
            if name == weight_set:
                return model
        raise PlanError(f"the plan has no weight set {weight_set!r}; it has {[n for n, _ in self.models]}")

    def tape(self, tape_id: str) -> Tape:
        """The tape of that id; raises :class:`PlanError` where there is none."""
        for tape in self.tapes:
            if tape.id == tape_id:
                return tape
        raise PlanError(f"the plan has no tape {tape_id!r}")

    def cache(self, cache_id: str) -> Cache:
        """The restore cache of that id; raises :class:`PlanError` where there is none."""
        for cache in self.caches:
            if cache.id == cache_id:
                return cache
        raise PlanError(f"the plan has no restore cache {cache_id!r}")

    @property
    def final_grid(self) -> Grid:
        """The code map's grid: the last of the schedule, also where the last scales are skipped."""
        return self.schedule[-1]

    @property
    def code_grid(self) -> Grid:
        """The code sum's grid, in latents: ``patch`` of them for each token of the final grid, along each axis."""
        return self.latents(self.final_grid)

    def latents(self, grid: Grid) -> Grid:
        """The latents that tokens of a grid stand for: ``patch`` along each axis."""
        return grid[0] * self.tokenizer.patch, grid[1] * self.tokenizer.patch

    @property
    def image_size(self) -> Grid:
        """Height and width of a picture, in pixels."""
        return self.code_grid[0] * self.tokenizer.stride, self.code_grid[1] * self.tokenizer.stride

    def tape_rows(self, tape_id: str) -> int:
        """Rows that a tape's buffer must hold: the furthest row that is pre-filled, written or read."""
        return max([self.tape(tape_id).prefilled, *(use.start + use.length for use in self._tape_uses(tape_id))])

    def _tape_uses(self, tape_id: str) -> Iterator[Segment | TapeWrite]:
        for step in self.steps:
            for layer in step.layers:
                yield from (use for use in layer.tape_uses if use.tape == tape_id)
