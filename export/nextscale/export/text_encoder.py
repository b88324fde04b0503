"""What every text encoder is, and the parts that they share: token ids of prompts to features.

An encoder is eager PyTorch like the other models: it is loaded strictly by its checkpoint's keys, run to verify, and
traced without weights into the graph ``text``. Products with weights are computed in the weights' dtype; norms, scores
and the residual stream are float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from nextscale.export.models.contract import Derived
from nextscale.export.models.ops import linear
from nextscale.plan.conditioning import Shape


class TextEncoder(nn.Module, ABC):
    """A text encoder for prompts of up to ``tokens`` tokens, padded on the right. Module names are checkpoint keys.

    ``sizes`` is a frozen dataclass of the numbers that the graph depends on; ``prefix`` are token ids that stand before
    every prompt and whose features are cut off again. ``DERIVED`` names what ``fold`` makes, as the contract of the
    other models has it. Blocks differ in nothing but weights, so that one is traced for all.
    """

    DERIVED: ClassVar[Mapping[str, Derived]] = {}
    BLOCK_BUFFERS: ClassVar[tuple[str, ...]] = ()  # derived tensors that every block reads

    def __init__(self, sizes: Any, tokens: int, prefix: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.sizes, self.tokens, self.prefix = sizes, tokens, prefix
        self.dtype = torch.float32

    @property
    @abstractmethod
    def width(self) -> int:
        """The width of a feature."""

    @property
    @abstractmethod
    def blocks(self) -> tuple[str, nn.ModuleList]:
        """Where the blocks stand (``encoder.block``), and they: ``block(x, bias, *BLOCK_BUFFERS)`` to x."""

    @property
    @abstractmethod
    def bias_shape(self) -> Shape:
        """Of the bias that all blocks add to their scores."""

    @abstractmethod
    def begin(self, ids: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and lengths as :meth:`forward` takes them to x (B, P + T, C) and the bias, float32."""

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """x (B, P + T, C) to features (B, T, width)."""

    @abstractmethod
    def fold(self) -> Self:
        """Makes every derived tensor, where the weights are."""

    @abstractmethod
    def computing(self, dtype: torch.dtype) -> Iterable[nn.Module]:
        """The modules whose weights may be of this half precision; all else stays float32."""

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Casts them; what is derived must have been made before."""
        self.dtype = dtype
        if dtype != torch.float32:
            for module in self.computing(dtype):
                for name, weight in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))
        return self

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        """Ids (B, T) int32, of which the first ``length`` (B,) int32 are the prompt's, to features (B, T, width).

        No token sees one behind its prompt's length; features behind it are those of the padding.
        """
        x, bias = self.begin(ids, length)
        for block in self.blocks[1]:
            x = block(x, bias, *map(self.get_buffer, self.BLOCK_BUFFERS))
        return self.finish(x)


def project(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x)`` as one product in the weight's dtype, float32 out."""
    return linear(x.to(layer.weight.dtype), layer.weight, layer.bias).float()


def embed(ids: Tensor, table: nn.Embedding) -> Tensor:
    """Rows (B, T, C) float32 of a table in any dtype."""
    return nn.functional.embedding(ids, table.weight).float()


def heads_of(x: Tensor, head_dim: int) -> Tensor:
    """(B, T, H * hd) to (B, H, T, hd)."""
    return x.reshape(*x.shape[:-1], -1, head_dim).transpose(1, 2)


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor) -> Tensor:
    """Softmax attention with a bias on the scores: q, k, v (B, H, T, hd) to (B, T, H * hd).

    ``q`` may have more heads than ``k`` and ``v``: neighbours share a key head. In standard operators: prompts are
    encoded once per picture, and their scores are small.
    """
    rows, heads, tokens, head_dim = q.shape
    q = q.reshape(rows, k.shape[1], -1, tokens, head_dim)  # (B, key heads, heads of each, T, hd)
    scores = torch.matmul(q * scale, k.unsqueeze(2).transpose(-1, -2))
    weights = torch.softmax(scores.reshape(rows, heads, tokens, -1) + bias, dim=-1).reshape(scores.shape)
    mixed = torch.matmul(weights, v.unsqueeze(2)).reshape(rows, heads, tokens, head_dim)
    return mixed.transpose(1, 2).reshape(rows, tokens, -1)


def hidden_from(seen: Tensor) -> Tensor:
    """What is added to the scores: 0 where a key is seen, else the lowest float32, which leaves no NaN anywhere."""
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)
