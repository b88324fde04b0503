"""Infinity: the text-to-image next-scale transformer with a bitwise head.

Source: FoundationVision/Infinity; the sheet's sections 2.1 to 2.6. Module names are the published state dict's keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from nextscale.export.models import contract
from nextscale.export.models.attention import SelfAttention, at
from nextscale.export.models.contract import BlockOutput, Conditions, Derived, Past, Rotation
from nextscale.export.models.grid_rope import grid_rotation, turn_pairs
from nextscale.export.models.layers import EPS, AdaLin, FeedForward, HeadNorm, RMSNorm, modulated
from nextscale.export.models.ops import linear
from nextscale.export.models.pruning import run_sub_layers
from nextscale.export.models.resize import Resize
from nextscale.export.models.text_attention import AttentionPool, CrossAttention, TextProjection, within
from nextscale.plan.errors import PlanError
from nextscale.plan.ratios import rope_grid
from nextscale.plan.types import Grid, Layer, Model, Step, SubLayer

LEVELS = 15  # rows of the table of levels, whatever the schedule
UNCONDITIONAL = 512  # rows of the learned text in place of a negative prompt


class Block(contract.Block):
    """Self-attention, attention to the text and FFN, any of which may be pruned by the plan."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, model.width) / model.width**0.5)
        self.sa = SelfAttention(model, turn=turn_pairs)
        self.ca_norm = nn.LayerNorm(model.width, eps=EPS)
        self.ca = CrossAttention(model.width, model.heads)
        self.ffn = FeedForward(model.width, model.ffn_width)

    def adaln(self, shared: Tensor) -> Tensor:
        """gamma1, gamma2, scale1, scale2, shift1, shift2: (R, 6, C) float32 of the shared ones (R, 6, C)."""
        return (shared.unsqueeze(1) + self.ada_gss).squeeze(1)

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
        """As the contract has it; of the conditions it reads ``adaln`` (R, 6, C) float32, ``text.k`` and ``text.v``

        (R, T, H, hd + lanes): lanes of keys hide what is behind a row's text, those of values are zeros.
        """
        gamma1, gamma2, scale1, scale2, shift1, shift2 = cond["adaln"].split(1, dim=1)  # (R, 1, C) each
        dtype, rows = self.sa.proj.weight.dtype, {}

        def sa(tokens: Tensor, index: Tensor | None) -> Tensor:
            y = modulated(tokens, scale1, shift1).to(dtype)
            out, rows["key"], rows["value"] = self.sa(y, past, at(rotation, index), bias)
            update: Tensor = gamma1 * out
            return update.to(dtype)

        def ca(tokens: Tensor, index: Tensor | None) -> Tensor:
            y = self.ca_norm(tokens).to(dtype)
            update: Tensor = self.ca(y, cond["text.k"], cond["text.v"])
            return update

        def ffn(tokens: Tensor, index: Tensor | None) -> Tensor:
            update: Tensor = gamma2 * self.ffn(modulated(tokens, scale2, shift2).to(dtype))
            return update.to(dtype)

        computes = {"sa": sa, "ca": ca, "ffn": ffn}
        x, written = run_sub_layers(x, layer, computes, grid, resize, caches)
        return BlockOutput(x, rows["key"], rows["value"], written)


class Chunk(nn.Module):
    """Blocks that upstream shards together."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.module = nn.ModuleList(Block(model) for _ in range(model.depth // model.chunks))


class Infinity(contract.Transformer):
    """The transformer for one schedule; ``model`` has a text that is cross-attended, rotary places on a grid, bits.

    A model that names no ``rope_grid`` has that of the schedule's ratio. Raises :class:`PlanError` for a model without
    these, for chunks of unequal depth, for more than 15 scales or 512 text tokens.
    """

    DERIVED: ClassVar[Mapping[str, Derived]] = {
        **SelfAttention.DERIVED,
        **AttentionPool.DERIVED,
        "level": Derived("lvl_embed[scale]", ("lvl_embed.weight",)),
        "start_level": Derived("pos_start + lvl_embed[0]", ("pos_start", "lvl_embed.weight")),
        "uncond": Derived("cfg_uncond[: text tokens]", ("cfg_uncond",)),
        "rope_cos": Derived("cosines of a scale's places on the rotary grid, (tokens, 1, head_dim / 2)"),
        "rope_sin": Derived("sines of a scale's places on the rotary grid, (tokens, 1, head_dim / 2)"),
    }
    FLOAT32: ClassVar[frozenset[str]] = frozenset({"q_scale", "scale_mul_1H11"})

    def __init__(self, model: Model, schedule: Sequence[Grid]) -> None:
        super().__init__()
        text, width = model.text, model.width
        if text is None or text.use != "cross" or model.rope != "grid" or not model.bits:
            raise PlanError(
                "an Infinity has a text that is cross-attended, rotary places on a grid and a head of bits; "
                f"found {text}, rope {model.rope!r} and {model.bits} bits"
            )
        if len(schedule) > LEVELS or text.tokens > UNCONDITIONAL or not model.chunks or model.depth % model.chunks:
            raise PlanError(
                f"an Infinity has at most {LEVELS} scales and {UNCONDITIONAL} text tokens, and chunks of equal depth; "
                f"found {len(schedule)}, {text.tokens}, and {model.chunks} chunks of {model.depth} blocks"
            )
        self.model, self.schedule, self.text_tokens = model, tuple(schedule), text.tokens
        self.rope_grid = model.rope_grid or rope_grid(self.schedule)
        self.cfg_uncond = nn.Parameter(torch.randn(UNCONDITIONAL, text.width) * 0.02)
        self.pos_start = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.text_norm = RMSNorm(text.width)
        self.text_proj_for_sos = nn.ModuleDict({"ca": AttentionPool(width, text.width)})
        self.text_proj_for_ca = TextProjection(text.width, width)
        self.lvl_embed = nn.Embedding(LEVELS, width)
        self.word_embed = nn.Linear(model.code_channels, width)
        self.shared_ada_lin = AdaLin(width, 6)
        self.block_chunks = nn.ModuleList(Chunk(model) for _ in range(model.chunks))
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, model.head_outputs)
        self.resize = Resize()

    def layer(self, index: int) -> Block:
        """The block of a layer."""
        block = self.get_submodule(self.layer_path(index))
        assert isinstance(block, Block)
        return block

    def layer_path(self, index: int) -> str:
        """``block_chunks.1.module.3``."""
        chunk, within = divmod(index, self.model.depth // self.model.chunks)
        return f"block_chunks.{chunk}.module.{within}"

    def derived(self, name: str) -> Tensor:
        """A tensor that follows from weights and schedule alone, as it was folded if it was."""
        if name in self._buffers:
            return self.get_buffer(name)
        if name == "uncond":
            return self.cfg_uncond[: self.text_tokens]
        if name == "start_level":
            return self.pos_start[0, 0] + self.lvl_embed.weight[0]
        stem, _, scale = name.rpartition("_")
        if stem == "level":
            return self.lvl_embed.weight[int(scale)]
        rotation = grid_rotation(self.schedule[int(scale)], self.rope_grid, self.model.head_dim)
        return {"rope_cos": rotation.cos, "rope_sin": rotation.sin}[stem].to(self.pos_start.device)

    def fold(self) -> Self:
        """Makes every derived tensor; afterwards the parameters behind them are idle."""
        names = [f"{stem}_{i:02d}" for stem in ("level", "rope_cos", "rope_sin") for i in range(len(self.schedule))]
        with torch.no_grad():
            for name in ("uncond", "start_level", *names):
                self.register_buffer(name, self.derived(name).detach(), persistent=False)
            for module in self.modules():
                if isinstance(module, SelfAttention | AttentionPool | CrossAttention):
                    module.fold()
        return self

    def computing(self) -> Iterable[nn.Module]:
        """The blocks' matrices; head and shared adaLN stay float32, as upstream, and so does what makes conditions."""
        blocks = map(self.layer, range(self.model.depth))
        return [module for block in blocks for module in (block.sa, block.ca, block.ffn)]

    def begin(self, given: Mapping[str, Tensor], guidance_rows: int) -> Conditions:
        """``text`` (B, T, Ct5), ``text_length`` (B,) int32, ``negative`` and ``negative_length`` to all conditions.

        Rows behind the first are the negative prompt's; where that has no tokens, the learned text at the prompt's
        length.
        """
        text, lengths = given["text"], given["text_length"]
        if guidance_rows > 1:
            learned = given["negative_length"] == 0  # (B,)
            uncond = self.derived("uncond")[: text.shape[1]]
            negative = torch.where(learned[:, None, None], uncond, given["negative"])
            text = torch.cat([text] + [negative] * (guidance_rows - 1))  # (R, T, Ct5)
            lengths = torch.cat(
                [lengths] + [torch.where(learned, lengths, given["negative_length"])] * (guidance_rows - 1)
            )
        seen = within(lengths, text.shape[1])
        text = self.text_norm(torch.where(seen[..., None], text, 0.0))  # what stands behind may be anything
        cond = self.text_proj_for_sos["ca"](text, seen)  # (R, C)
        context, shared = self.text_proj_for_ca(text), self.shared_ada_lin(cond)  # (R, T, C), (R, 6, C)
        conditions = {"sos": cond, "head": self.head_nm.ada_lin(cond)}
        for index in range(self.model.depth):
            block = self.layer(index)
            key, value = block.ca.keys_values(context, seen)
            own = {"adaln": block.adaln(shared), "text.k": key, "text.v": value}
            conditions.update({f"{part}.{index:02d}": tensor for part, tensor in own.items()})
        return conditions

    def embed(self, step: Step, source: Tensor, guidance_rows: int) -> Tensor:
        """The residual stream (R, n, C): of the start token (R, C) in the first step, else of a map (B, n, width)."""
        if step.order == 0:
            return source.unsqueeze(1) + self.derived("start_level")
        x = linear(source, self.word_embed.weight, self.word_embed.bias) + self.derived(f"level_{step.scale:02d}")
        return x.repeat(guidance_rows, 1, 1)

    def rotation(self, step: Step, cond: Mapping[str, Tensor]) -> Rotation:
        """Cosines and sines (n, 1, hd / 2) of a step's tokens."""
        return self._rotation(step.scale)

    def _rotation(self, scale: int) -> Rotation:
        return Rotation(self.derived(f"rope_cos_{scale:02d}"), self.derived(f"rope_sin_{scale:02d}"))

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """(R, n, C) and head adaLN (R, 2, C) to (R, n, 2 * bits) float32: pairs 2m, 2m + 1 are bit m's 0 and 1."""
        scale, shift = head.split(1, dim=1)  # (R, 1, C) each
        return linear(modulated(x, scale, shift), self.head.weight, self.head.bias)

    def forward(self, given: Mapping[str, Tensor], maps: Tensor) -> Tensor:
        """Teacher forcing in one pass: texts and input maps of scales 1.., (B, L - 1, Z), to logits (B, L, 2 * bits).

        Tokens see their own and earlier scales. ``given`` is ``text`` and ``text_length`` alone, taken as they are;
        training puts ``uncond`` in the place of some.
        """
        cond = self.begin(given, 1)
        lengths = [h * w for h, w in self.schedule]
        levels = [self.derived(f"level_{i:02d}").expand(n, -1) for i, n in enumerate(lengths) if i]
        later = linear(maps, self.word_embed.weight, self.word_embed.bias) + torch.cat(levels)
        x = torch.cat(((cond["sos"] + self.derived("start_level")).unsqueeze(1), later), dim=1)
        level = torch.arange(len(lengths), device=x.device).repeat_interleave(torch.tensor(lengths, device=x.device))
        bias = torch.where(level[:, None] >= level[None, :], 0.0, -math.inf)
        tables = zip(*(self._rotation(i) for i in range(len(lengths))), strict=True)
        rotation = Rotation(*(torch.cat(table) for table in tables))
        whole = tuple(SubLayer(name) for name in self.model.sub_layers)
        for index in range(self.model.depth):
            own = {part: cond[f"{part}.{index:02d}"] for part in ("adaln", "text.k", "text.v")}
            layer, grid = Layer(index, whole), (1, x.shape[1])
            x = self.layer(index)(x, own, layer, grid, self.resize, rotation=rotation, bias=bias).x
        return self.logits(x, cond["head"])
