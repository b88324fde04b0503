"""What every eager transformer and tokenizer is, so that running, tracing and comparing know no family.

A step of the chain is ``embed``, the blocks of the step's layers, ``logits``, and what
:mod:`nextscale.export.models.step` makes of them; what does not change over the steps is ``begin``. The exporter traces
exactly these functions. Names of conditions are those of :mod:`nextscale.plan.conditioning`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, NamedTuple, Self

from torch import Tensor, nn

from nextscale.export.models.resize import Resize
from nextscale.plan.errors import PlanError
from nextscale.plan.types import Grid, Layer, Model, NextInput, Step, Tokenizer

Conditions = dict[str, Tensor]
Past = tuple[Tensor, Tensor]  # key and value rows (T, R, H, hd)


class Rotation(NamedTuple):
    """Cosines and sines of rotary positions: (n, 1, d), or (R, n, 1, d) where rows differ; the third axis is heads."""

    cos: Tensor
    sin: Tensor


class BlockOutput(NamedTuple):
    """The residual stream, the new key and value rows (m, R, H, hd), and the restore caches that the plan writes."""

    x: Tensor
    key: Tensor
    value: Tensor
    caches: dict[str, Tensor]


class Derived(NamedTuple):
    """How a tensor that graphs take as a weight is made: the rule in words, and from which of its module's tensors."""

    rule: str
    sources: tuple[str, ...] = ()


class Block(nn.Module, ABC):
    """One block of a transformer; any of its sub-layers may be pruned by the plan."""

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        cond: Mapping[str, Tensor],
        layer: Layer,
        grid: Grid,
        resize: Resize,
        past: Past | None = None,
        caches: Mapping[str, tuple[Tensor, Grid]] | None = None,
        rotation: Rotation | None = None,
        bias: Tensor | None = None,
    ) -> BlockOutput:
        """``x`` (R, n, C) float32 through the layer as the plan has it in this step.

        ``cond`` are the conditions that blocks read: this block's own by their part (``adaln`` (R, 6, C)), others by
        their name. ``caches`` maps a sub-layer's name to its restore cache (R, hc * wc, C) and the cache's grid.
        ``bias`` is added to the scores of self-attention (teacher forcing's mask).
        """


class Transformer(nn.Module, ABC):
    """A next-scale transformer for one schedule. Module names are the published state dict's keys.

    ``DERIVED`` names the tensors that its modules ``fold``, beside checkpoint tensors, by the last part of their name;
    ``FLOAT32`` those, likewise, that stay float32 within ``computing``, as norms do.
    """

    DERIVED: ClassVar[Mapping[str, Derived]] = {}
    FLOAT32: ClassVar[frozenset[str]] = frozenset()

    model: Model
    schedule: tuple[Grid, ...]
    resize: Resize
    word_embed: nn.Linear

    @abstractmethod
    def layer(self, index: int) -> Block:
        """The block of a layer."""

    def layer_path(self, index: int) -> str:
        """Where that block stands: ``blocks.7``, but where a family groups its blocks."""
        return f"blocks.{index}"

    @abstractmethod
    def begin(self, given: Mapping[str, Tensor], guidance_rows: int) -> Conditions:
        """What is computed once per picture, under the names of :func:`nextscale.plan.conditioning.conditions`.

        ``given`` are the tensors of :func:`nextscale.plan.conditioning.given`, (images, ...); rows are conditional
        first, then the further guidance rows.
        """

    @abstractmethod
    def embed(self, step: Step, source: Tensor, guidance_rows: int) -> Tensor:
        """The residual stream (R, n, C) float32: of ``sos`` in the first step, else of the input map (B, n, Z)."""

    def rotation(self, step: Step, cond: Mapping[str, Tensor]) -> Rotation | None:
        """The rotary positions of a step's tokens; None for a model without."""
        return None

    @abstractmethod
    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """(R, n, C) and head adaLN (R, 2, C) to (R, n, head outputs) float32."""

    def refine(self, x: Tensor, codes: Tensor, guidance: Tensor, noise: Tensor) -> Tensor:
        """What the residual diffusion adds to a step's codes: (B, n, Z) float32.

        ``x`` (R, n, C) is the residual stream, ``codes`` (B, n, Z) those of the drawn tokens, ``guidance`` (B, G) the
        weight of each row, ``noise`` (B, n, steps, Z) uniforms: the start, then one for every step but the last.
        """
        raise NotImplementedError(f"{type(self).__name__} has no residual diffusion")

    def fold(self) -> Self:
        """Makes every derived tensor that does not depend on a plan; the parameters behind them are idle afterwards."""
        return self

    @abstractmethod
    def computing(self) -> Iterable[nn.Module]:
        """The modules whose products are computed in the plan's precision; all else stays float32."""


class Quantizer(nn.Module, ABC):
    """Between tokens and the code sum."""

    resize: Resize

    @abstractmethod
    def codes(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens (B, n, *draws) int32 to their code map in latents (B, Z, h, w)."""

    def mixture(self, weights: Tensor, grid: Grid) -> Tensor:
        """Weights over the codebook (B, n, V) to the map (B, Z, h, w) of weighted codes, where there is a codebook."""
        raise PlanError("a plan with more_smooth needs a tokenizer with a codebook, whose codes it mixes")

    @abstractmethod
    def contribution(self, codes: Tensor, code_grid: Grid, up: str, phi: int | None) -> Tensor:
        """What a scale's code map (B, Z, h, w) adds to the code sum (B, Z, Sh, Sw)."""

    @abstractmethod
    def next_input(self, code_sum: Tensor, rule: NextInput) -> Tensor:
        """The next step's tokens (B, n_next, token width), raster order, from the code sum."""


class TokenizerModel(nn.Module, ABC):
    """The picture side: a quantizer and a decoder."""

    DERIVED: ClassVar[Mapping[str, Derived]] = {}
    FLOAT32: ClassVar[frozenset[str]] = frozenset()

    sizes: Tokenizer
    quantize: Quantizer

    @abstractmethod
    def decode(self, code_sum: Tensor) -> Tensor:
        """Code sum (B, Z, Sh, Sw) float32 to pictures (B, 3, H, W) float32 in [0, 1], RGB."""

    def fold(self) -> Self:
        """Makes every derived tensor."""
        return self

    def drop_encoder(self) -> None:
        """Lets go of what only pictures that are encoded need."""
        for name in ("encoder", "quant_conv"):
            self._modules.pop(name, None)

    @abstractmethod
    def computing(self) -> Sequence[nn.Module]:
        """The modules whose products are computed in the plan's precision."""
