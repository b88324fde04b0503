"""VAR: the class-conditional next-scale transformer. Source: FoundationVision/VAR; the sheet's sections 1.1 and 1.2.

Module names are the published state dict's keys. One step of the chain is ``embed``, the blocks, ``predict``; what
does not change over the steps is ``begin``. The exporter traces exactly these functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from nextscale.export.models import contract
from nextscale.export.models.attention import SelfAttention
from nextscale.export.models.contract import BlockOutput, Conditions, Derived, Past, Rotation
from nextscale.export.models.layers import AdaLin, FeedForward, HeadNorm, modulated
from nextscale.export.models.ops import linear
from nextscale.export.models.pruning import run_sub_layers
from nextscale.export.models.resize import Resize
from nextscale.plan.types import Grid, Layer, Model, Step, SubLayer


class Block(contract.Block):
    """One adaLN block; gates and norms around attention and FFN, either of which may be pruned by the plan."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.attn = SelfAttention(model)
        self.ffn = FeedForward(model.width, model.ffn_width)
        if model.shared_adaln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, model.width) / model.width**0.5)
        else:
            self.ada_lin = AdaLin(model.width, 6)

    def adaln(self, cond: Tensor, shared: Tensor | None) -> Tensor:
        """gamma1, gamma2, scale1, scale2, shift1, shift2: (R, 6, C) float32 of ``cond`` (R, C), or from the shared."""
        out: Tensor = self.ada_lin(cond) if shared is None else (shared.unsqueeze(1) + self.ada_gss).squeeze(1)
        return out

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
        """As the contract has it; of the conditions it reads ``adaln`` (R, 6, C) float32."""
        gamma1, gamma2, scale1, scale2, shift1, shift2 = cond["adaln"].split(1, dim=1)  # (R, 1, C) each
        dtype, rows = self.attn.proj.weight.dtype, {}

        def attn(tokens: Tensor, index: Tensor | None) -> Tensor:
            y = modulated(tokens, scale1, shift1).to(dtype)
            out, rows["key"], rows["value"] = self.attn(y, past, bias=bias)
            update: Tensor = gamma1 * out
            return update.to(dtype)

        def ffn(tokens: Tensor, index: Tensor | None) -> Tensor:
            update: Tensor = gamma2 * self.ffn(modulated(tokens, scale2, shift2).to(dtype))
            return update.to(dtype)

        computes = {"attn": attn, "ffn": ffn}
        x, written = run_sub_layers(x, layer, computes, grid, resize, caches)
        return BlockOutput(x, rows["key"], rows["value"], written)


class VAR(contract.Transformer):
    """The transformer for one schedule. ``model.classes`` is also the null class's index."""

    DERIVED: ClassVar[Mapping[str, Derived]] = {
        **SelfAttention.DERIVED,
        "lvl_pos": Derived("lvl_embed[scale] + pos_1LC[its tokens]", ("lvl_embed.weight", "pos_1LC")),
        "start_pos": Derived(
            "lvl_embed[0] + pos_1LC[its tokens] + pos_start", ("lvl_embed.weight", "pos_1LC", "pos_start")
        ),
    }
    FLOAT32: ClassVar[frozenset[str]] = frozenset({"q_scale", "scale_mul_1H11", "ada_gss"})

    def __init__(self, model: Model, schedule: Sequence[Grid]) -> None:
        super().__init__()
        self.model, self.schedule = model, tuple(schedule)
        self.lengths = [h * w for h, w in self.schedule]
        width = model.width
        self.word_embed = nn.Linear(model.code_channels, width)
        self.class_emb = nn.Embedding(model.classes + 1, width)
        self.pos_start = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_1LC = nn.Parameter(torch.randn(1, sum(self.lengths), width) * 0.02)
        self.lvl_embed = nn.Embedding(len(self.schedule), width)
        if model.shared_adaln:
            self.shared_ada_lin = AdaLin(width, 6)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.depth))
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, model.vocabulary)
        self.resize = Resize()

    def layer(self, index: int) -> Block:
        """The block of a layer."""
        block = self.blocks[index]
        assert isinstance(block, Block)
        return block

    def level_position(self, scale: int) -> Tensor:
        """Level plus absolute position embedding of a scale's tokens, (n, C); scale 0 has the start position too."""
        name = f"lvl_pos_{scale:02d}" if scale else "start_pos"
        if name in self._buffers:
            return self.get_buffer(name)
        start = sum(self.lengths[:scale])
        position = self.pos_1LC[0, start : start + self.lengths[scale]] + self.lvl_embed.weight[scale]
        return position + self.pos_start[0] if scale == 0 else position

    def fold(self) -> Self:
        """Makes every derived tensor that does not depend on a plan; afterwards the parameters behind them are idle."""
        with torch.no_grad():
            for scale in range(len(self.schedule)):
                name = f"lvl_pos_{scale:02d}" if scale else "start_pos"
                self.register_buffer(name, self.level_position(scale).detach(), persistent=False)
            for module in self.modules():
                if isinstance(module, SelfAttention):
                    module.fold()
        return self

    def computing(self) -> Iterable[nn.Module]:
        """Blocks, adaLN and head; embeddings and positions stay float32, as the residual stream does."""
        return (*self.blocks, *(m for n, m in self.named_children() if n in ("shared_ada_lin", "head_nm", "head")))

    def begin(self, given: Mapping[str, Tensor], guidance_rows: int) -> Conditions:
        """``labels`` (B,) to the conditions of all rows: the labels, then the null class in each further row."""
        labels = given["labels"]
        null = torch.full_like(labels, self.model.classes)
        cond = self.class_emb(torch.cat([labels] + [null] * (guidance_rows - 1))).float()  # (R, C)
        shared = self.shared_ada_lin(cond) if self.model.shared_adaln else None
        adaln = {f"adaln.{i:02d}": self.layer(i).adaln(cond, shared) for i in range(self.model.depth)}
        return {"sos": cond, **adaln, "head": self.head_nm.ada_lin(cond)}

    def embed(self, step: Step, source: Tensor, guidance_rows: int) -> Tensor:
        """The residual stream (R, n, C): from the start token (R, C) in the first step, else from a map (B, n, Z)."""
        if step.order == 0:
            return source.unsqueeze(1) + self.level_position(0).float()
        x = linear(source, self.word_embed.weight, self.word_embed.bias) + self.level_position(step.scale)
        return x.float().repeat(guidance_rows, 1, 1)

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """(R, n, C) and head adaLN (R, 2, C) to (R, n, V) float32."""
        scale, shift = head.split(1, dim=1)  # (R, 1, C) each
        return linear(modulated(x, scale, shift).to(self.head.weight.dtype), self.head.weight, self.head.bias).float()

    def forward(self, labels: Tensor, maps: Tensor) -> Tensor:
        """Teacher forcing in one pass: labels (B,), input maps of scales 1.. as (B, L - 1, Z) to logits (B, L, V).

        Tokens see their own and earlier scales. Labels are taken as given; training drops some to the null class.
        """
        cond = self.begin({"labels": labels}, 1)
        later = linear(maps, self.word_embed.weight, self.word_embed.bias) + torch.cat(
            [self.level_position(s) for s in range(1, len(self.schedule))]
        )
        x = torch.cat((cond["sos"].unsqueeze(1) + self.level_position(0), later.float()), dim=1)
        level = torch.arange(len(self.schedule), device=x.device).repeat_interleave(
            torch.tensor(self.lengths, device=x.device)
        )
        bias = torch.where(level[:, None] >= level[None, :], 0.0, -math.inf)
        for index in range(self.model.depth):
            own = {"adaln": cond[f"adaln.{index:02d}"]}
            x = self.layer(index)(x, own, whole(index), (1, x.shape[1]), self.resize, bias=bias).x
        return self.logits(x, cond["head"])


def whole(index: int) -> Layer:
    """A layer that computes every token and remembers nothing: teacher forcing's."""
    return Layer(index, (SubLayer("attn"), SubLayer("ffn")))
