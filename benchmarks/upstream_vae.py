"""VAR's tokenizer as upstream's eager code runs it: code lookup, code sum, decoder (the sheet's sections 1.3 and 1.5).

Of a state dict under the published keys; the encoder's are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.plan.types import Grid, Step, Tokenizer

EPS = 1e-6


class UpstreamTokenizer(nn.Module):
    """The quantizer's and the decoder's tensors, which are shared with whoever gave them."""

    def __init__(self, sizes: Tokenizer, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.sizes, self.tensors = sizes, dict(state)

    def codes(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens (B, n) int64 to their code map (B, Z, h, w)."""
        found: Tensor = F.embedding(tokens, self.tensors["quantize.embedding.weight"]).transpose(1, 2)
        codes: Tensor = found.unflatten(2, grid)
        return codes

    def next_input(self, step: Step, codes: Tensor, code_sum: Tensor, size: Grid) -> tuple[Tensor, Tensor | None]:
        """The code sum (B, Z, Sh, Sw), which is overwritten, and the next map (B, Z, h, w), None after the last."""
        full = codes if step.grid == size else F.interpolate(codes, size=size, mode="bicubic")
        if step.next_input.phi is not None:
            conv = self.conv(f"quantize.quant_resi.qresi_ls.{step.next_input.phi}", full)
            full = full.mul(0.5) + conv.mul_(0.5)
        code_sum.add_(full)
        grid = step.next_input.grid
        return code_sum, None if grid is None else F.interpolate(code_sum, size=grid, mode="area")

    def decode(self, code_sum: Tensor) -> Tensor:
        """Code sum (B, Z, h, w) to pictures (B, 3, H, W) in [0, 1]."""
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", code_sum))
        for name in ("block_1", "attn_1", "block_2"):
            x = self.block(f"decoder.mid.{name}", x)
        for level in reversed(range(len(self.sizes.multipliers))):
            for i in range(self.sizes.res_blocks):
                x = self.block(f"decoder.up.{level}.block.{i}", x)
                x = self.block(f"decoder.up.{level}.attn.{i}", x)
            if level:
                x = self.conv(f"decoder.up.{level}.upsample.conv", F.interpolate(x, scale_factor=2, mode="nearest"))
        x = self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x), inplace=True))
        return x.clamp_(-1, 1).add_(1).mul_(0.5)

    forward = decode

    def block(self, key: str, x: Tensor) -> Tensor:
        """A residual or an attention block (B, C, h, w), whichever has that name; ``x`` where there is none."""
        if f"{key}.qkv.weight" in self.tensors:
            return self.attention(key, x)
        if f"{key}.conv1.weight" not in self.tensors:
            return x
        h = self.conv(f"{key}.conv1", F.silu(self.norm(f"{key}.norm1", x), inplace=True))
        h = self.conv(f"{key}.conv2", F.silu(self.norm(f"{key}.norm2", h), inplace=True))
        shortcut = f"{key}.nin_shortcut"
        return (self.conv(shortcut, x) if f"{shortcut}.weight" in self.tensors else x) + h

    def attention(self, key: str, x: Tensor) -> Tensor:
        """One head over all positions: (B, C, h, w) to the same shape."""
        b, c, h, w = x.shape
        q, k, v = self.conv(f"{key}.qkv", self.norm(f"{key}.norm", x)).reshape(b, 3, c, h * w).unbind(1)
        weights = torch.bmm(q.permute(0, 2, 1).contiguous(), k.contiguous()).mul_(c**-0.5).softmax(dim=2)
        out = torch.bmm(v.contiguous(), weights.permute(0, 2, 1).contiguous())  # (B, C, hw)
        return x + self.conv(f"{key}.proj_out", out.view(b, c, h, w))

    def conv(self, key: str, x: Tensor) -> Tensor:
        """A convolution that keeps the size."""
        weight = self.tensors[f"{key}.weight"]
        return F.conv2d(x, weight, self.tensors[f"{key}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, key: str, x: Tensor) -> Tensor:
        """GroupNorm."""
        return F.group_norm(x, self.sizes.norm_groups, self.tensors[f"{key}.weight"], self.tensors[f"{key}.bias"], EPS)
