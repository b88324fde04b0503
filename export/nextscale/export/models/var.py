"""VAR: the class-conditional next-scale transformer. Source: FoundationVision/VAR; the sheet's sections 1.1 and 1.2.

Module names are the published state dict's keys. One step of the chain is ``embed``, the blocks, ``predict``; what
does not change over the steps is ``begin``. The exporter traces exactly these functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.export.models.ops import attention, linear
from nextscale.export.models.pruning import run_sub_layer
from nextscale.export.models.resize import Resize
from nextscale.plan.types import Grid, Layer, Model, SubLayer

EPS = 1e-6
MAX_SCALE_MUL = math.log(100)  # clamped in log space, before exp
NORM_EPS = 1e-12


class Conditioning(NamedTuple):
    """What ``begin`` computes once per image: start token (R, C), adaLN (R, 6, C) per layer, head adaLN (R, 2, C)."""

    sos: Tensor
    adaln: list[Tensor]
    head: Tensor


class BlockOutput(NamedTuple):
    """The residual stream, the new key and value rows (m, R, H, hd), and the restore caches that the plan writes."""

    x: Tensor
    key: Tensor
    value: Tensor
    caches: dict[str, Tensor]


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without affine, float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=EPS)


def unit(x: Tensor) -> Tensor:
    """``x / max(||x||, 1e-12)`` over the head size, in float32: 1e-12 is 0 in float16."""
    x = x.float()
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(NORM_EPS)


class AdaLin(nn.Sequential):
    """adaLN parameters of a condition: ``Linear(SiLU(cond))`` in ``groups`` of the width (key ``ada_lin.1``)."""

    def __init__(self, width: int, groups: int) -> None:
        lin = nn.Linear(width, groups * width)
        super().__init__(nn.SiLU(), lin)
        self.groups = groups

    def forward(self, cond: Tensor) -> Tensor:
        """(R, C) to (R, groups, C) float32."""
        weight, bias = (self.get_parameter(f"1.{name}") for name in ("weight", "bias"))
        return linear(F.silu(cond).to(weight.dtype), weight, bias).float().reshape(cond.shape[0], self.groups, -1)


class SelfAttention(nn.Module):
    """Fused qkv, optional l2 norm of q and k with a learned scale per head, projection.

    ``fold`` makes the derived tensors that graphs take as weights: ``qkv_bias`` (3C) and ``q_scale`` (1, 1, H, 1).
    """

    qkv_bias: Tensor
    q_scale: Tensor

    RULES: ClassVar = {
        "qkv_bias": "concat(q_bias, 0, v_bias)",
        "q_scale": "exp(min(scale_mul_1H11, ln 100)), heads before head_dim",
    }

    def __init__(self, model: Model) -> None:
        super().__init__()
        width, self.heads = model.width, model.heads
        self.qk_norm, self.head_dim = model.qk_norm, model.head_dim
        self.scale = 1.0 if model.qk_norm else 0.25 / math.sqrt(model.head_dim)
        if model.qk_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, model.heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def derived(self) -> tuple[Tensor, Tensor | None]:
        """``qkv_bias`` and ``q_scale`` from the parameters, or as they were folded."""
        if "qkv_bias" in self._buffers:
            return self.qkv_bias, self.q_scale if self.qk_norm else None
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        if not self.qk_norm:
            return bias, None
        return bias, self.scale_mul_1H11.float().clamp_max(MAX_SCALE_MUL).exp().reshape(1, 1, self.heads, 1)

    def fold(self) -> None:
        """Keeps the derived tensors as (non-persistent) buffers."""
        bias, scale = self.derived()
        self.register_buffer("qkv_bias", bias.detach(), persistent=False)
        if scale is not None:
            self.register_buffer("q_scale", scale.detach(), persistent=False)

    def forward(
        self, y: Tensor, past: tuple[Tensor, Tensor] | None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``y`` (R, m, C), past key and value rows (T, R, H, hd): output (R, m, C), new rows (m, R, H, hd)."""
        rows, m, _ = y.shape
        qkv_bias, q_scale = self.derived()
        parts = linear(y, self.mat_qkv.weight, qkv_bias).split(self.heads * self.head_dim, dim=-1)
        q, k, v = (part.reshape(rows, m, self.heads, self.head_dim) for part in parts)
        if q_scale is not None:
            q, k = (unit(q) * q_scale).to(y.dtype), unit(k).to(y.dtype)
        key, value = k.transpose(0, 1), v.transpose(0, 1)  # token-major, as tapes are
        keys, values = (key, value) if past is None else (torch.cat((past[0], key)), torch.cat((past[1], value)))
        out = attention(q, keys, values, self.scale, bias)
        return linear(out, self.proj.weight, self.proj.bias), key, value


class FeedForward(nn.Module):
    """``fc2(gelu_tanh(fc1(y)))``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, y: Tensor) -> Tensor:
        """(R, m, C) to the same shape."""
        h = F.gelu(linear(y, self.fc1.weight, self.fc1.bias), approximate="tanh")
        return linear(h, self.fc2.weight, self.fc2.bias)


class Block(nn.Module):
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
        adaln: Tensor,
        layer: Layer,
        grid: Grid,
        resize: Resize,
        past: tuple[Tensor, Tensor] | None = None,
        caches: dict[str, tuple[Tensor, Grid]] | None = None,
        bias: Tensor | None = None,
    ) -> BlockOutput:
        """``x`` (R, n, C) float32 through the layer as the plan has it in this step.

        ``caches`` maps a sub-layer's name to its restore cache (R, hc * wc, C) and the cache's grid.
        """
        gamma1, gamma2, scale1, scale2, shift1, shift2 = adaln.split(1, dim=1)  # (R, 1, C) each
        dtype, rows = self.attn.mat_qkv.weight.dtype, {}

        def attn(tokens: Tensor) -> Tensor:
            y = (layer_norm(tokens) * (1 + scale1) + shift1).to(dtype)
            out, rows["key"], rows["value"] = self.attn(y, past, bias)
            update: Tensor = gamma1 * out
            return update.to(dtype)

        def ffn(tokens: Tensor) -> Tensor:
            y = (layer_norm(tokens) * (1 + scale2) + shift2).to(dtype)
            update: Tensor = gamma2 * self.ffn(y)
            return update.to(dtype)

        written: dict[str, Tensor] = {}
        for name, compute in (("attn", attn), ("ffn", ffn)):
            cache, cache_grid = (caches or {}).get(name, (None, None))
            x, full = run_sub_layer(x, layer.sub_layer(name), compute, grid, resize, cache, cache_grid)
            if full is not None:
                written[name] = full
        return BlockOutput(x, rows["key"], rows["value"], written)


class HeadNorm(nn.Module):
    """adaLN before the head: scale, then shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = AdaLin(width, 2)


class VAR(nn.Module):
    """The transformer for one schedule. ``model.classes`` is also the null class's index."""

    RULES: ClassVar = {"lvl_pos": "lvl_embed[scale] + pos_1LC[its tokens] (+ pos_start at scale 0)"}

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

    def level_position(self, scale: int) -> Tensor:
        """Level plus absolute position embedding of a scale's tokens, (n, C); scale 0 has the start position too."""
        name = f"lvl_pos_{scale:02d}"
        if name in self._buffers:
            return self.get_buffer(name)
        start = sum(self.lengths[:scale])
        position = self.pos_1LC[0, start : start + self.lengths[scale]] + self.lvl_embed.weight[scale]
        return position + self.pos_start[0] if scale == 0 else position

    def fold(self) -> VAR:
        """Makes every derived tensor that does not depend on a plan; afterwards the parameters behind them are idle."""
        with torch.no_grad():
            for scale in range(len(self.schedule)):
                self.register_buffer(f"lvl_pos_{scale:02d}", self.level_position(scale).detach(), persistent=False)
            for module in self.modules():
                if isinstance(module, SelfAttention):
                    module.fold()
        return self

    def begin(self, labels: Tensor, guidance_rows: int) -> Conditioning:
        """Labels (B,) to the conditioning of all rows: the labels, then the null class in each further guidance row."""
        null = torch.full_like(labels, self.model.classes)
        cond = self.class_emb(torch.cat([labels] + [null] * (guidance_rows - 1))).float()  # (R, C)
        shared = self.shared_ada_lin(cond) if self.model.shared_adaln else None
        adaln = [block.adaln(cond, shared) for block in self.blocks if isinstance(block, Block)]
        return Conditioning(cond, adaln, self.head_nm.ada_lin(cond))

    def embed(self, scale: int, source: Tensor, guidance_rows: int) -> Tensor:
        """The residual stream (R, n, C): from the start token (R, C) at scale 0, else from the input map (B, n, Z)."""
        if scale == 0:
            return source.unsqueeze(1) + self.level_position(0).float()
        x = linear(source, self.word_embed.weight, self.word_embed.bias) + self.level_position(scale)
        return x.float().repeat(guidance_rows, 1, 1)

    def logits(self, x: Tensor, head: Tensor) -> Tensor:
        """(R, n, C) and head adaLN (R, 2, C) to (R, n, V) float32."""
        scale, shift = head.split(1, dim=1)  # (R, 1, C) each
        y = (layer_norm(x) * (1 + scale) + shift).to(self.head.weight.dtype)
        return linear(y, self.head.weight, self.head.bias).float()

    def forward(self, labels: Tensor, maps: Tensor) -> Tensor:
        """Teacher forcing in one pass: labels (B,), input maps of scales 1.. as (B, L - 1, Z) to logits (B, L, V).

        Tokens see their own and earlier scales. Labels are taken as given; training drops some to the null class.
        """
        cond = self.begin(labels, 1)
        later = linear(maps, self.word_embed.weight, self.word_embed.bias) + torch.cat(
            [self.level_position(s) for s in range(1, len(self.schedule))]
        )
        x = torch.cat((self.embed(0, cond.sos, 1), later.float()), dim=1)
        level = torch.arange(len(self.schedule), device=x.device).repeat_interleave(
            torch.tensor(self.lengths, device=x.device)
        )
        bias = torch.where(level[:, None] >= level[None, :], 0.0, -math.inf)
        for index, (block, adaln) in enumerate(zip(self.blocks, cond.adaln, strict=True)):
            x = block(x, adaln, whole(index), (1, x.shape[1]), self.resize, bias=bias).x
        return self.logits(x, cond.head)


def whole(index: int) -> Layer:
    """A layer that computes every token and remembers nothing: teacher forcing's."""
    return Layer(index, (SubLayer("attn"), SubLayer("ffn")))
