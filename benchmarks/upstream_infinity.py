"""Infinity's transformer as upstream's eager code runs it, plain and with FastVAR: what we are measured against.

Facts of FoundationVision/Infinity and csguoh/FastVAR, the sheet's sections 2.3 to 2.6, 4.1 and 4.2, written anew. Kept
is what costs time or memory: keys and values of the text made in every block at every scale, adaLN summed anew, biases
joined for every call, caches of keys that grow by ``torch.cat`` as (R, H, T, hd) and get the last scale's rows too,
restore caches of all layers, kept tokens by a full sort, sampling by ``torch.multinomial``. One picture, a conditional
and an unconditional row. Float32, or in an autocast around it, which adaLN and the head leave as upstream's do. What is
kept, cached and skipped is the plan's, so that both sides run the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from upstream_blocks import EPS, Block, Text, TextAttention, modulated, with_key_biases

from nextscale.plan.types import Grid, Plan, Step

TOP_K, LEVELS, UNCONDITIONAL = 900, 15, 512


class Made(NamedTuple):
    """A finished step: guided logits (1, n, 2 * bits), bits as tokens (1, n, bits), the code sum (1, Z, 1, Sh, Sw)."""

    step: Step
    logits: Tensor
    tokens: Tensor
    code_sum: Tensor


class UpstreamInfinity(nn.Module):
    """The whole, under the published keys; ``over`` makes one of a state dict."""

    rope: Tensor

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        model = plan.model()
        assert model.text is not None
        assert model.rope_grid is not None
        self.plan, width, text_width = plan, model.width, model.text.width
        heads = max(1, text_width // (128 if width <= 4096 else 64))
        self.cfg_uncond = nn.Parameter(torch.empty(UNCONDITIONAL, text_width))
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.text_norm = nn.RMSNorm(text_width, eps=EPS)
        self.text_proj_for_sos = nn.ModuleDict({"ca": TextAttention(width, text_width, heads, pool=True)})
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.lvl_embed = nn.Embedding(LEVELS, width)
        self.word_embed = nn.Linear(model.code_channels, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = [Block(model) for _ in range(model.depth)]  # a plain list: their keys are those of their chunks
        size = model.depth // model.chunks
        chunks = [nn.ModuleList(self.blocks[i : i + size]) for i in range(0, model.depth, size)]
        self.block_chunks = nn.ModuleList(nn.ModuleDict({"module": chunk}) for chunk in chunks)
        self.head_nm = nn.ModuleDict({"ada_lin": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))})
        self.head = nn.Linear(width, model.head_outputs)
        self.register_buffer("rope", rope_table(plan.schedule, model.rope_grid, model.head_dim), persistent=False)
        self.cached = plan.caches[0].grid if plan.caches else None

    @classmethod
    def over(cls, plan: Plan, state: Mapping[str, Tensor]) -> Self:
        """Over the tensors of a state dict, which are shared."""
        with torch.device("meta"):
            made = cls(plan)
        made.load_state_dict(with_key_biases(state), assign=True)
        return made.eval().requires_grad_(False)

    @torch.inference_mode()
    def begin(self, features: Tensor) -> Text:
        """A prompt's features (T, text width), beside the learned text of the same length."""
        text = self.text_norm(torch.stack((features, self.cfg_uncond[: len(features)])))
        cond = self.text_proj_for_sos["ca"](text, text).squeeze(1)
        with no_autocast(cond):
            shared = self.shared_ada_lin(cond.float()).view(2, 1, 6, -1)
        return Text(cond, shared, self.text_proj_for_ca(text))

    @torch.inference_mode()
    def stream(
        self,
        text: Text,
        guidance: float,
        temperature: float,
        top_p: float,
        seed: int,
        tokens: Sequence[Tensor] | None = None,
    ) -> Iterator[Made]:
        """Step by step; ``tokens`` forces bits, (1, n, bits) for each step."""
        plan, generator = self.plan, torch.Generator(self.pos_start.device).manual_seed(seed)
        self.forget()
        x, code_sum = text.cond.unsqueeze(1) + self.pos_start, torch.zeros(())
        for step in plan.steps:
            x = x + self.lvl_embed.weight[step.scale]
            start = sum(h * w for h, w in plan.schedule[: step.scale])
            rope = self.rope[..., start : start + x.shape[1], :]
            for layer in step.layers:
                x = self.blocks[layer.index](x, text, rope, layer, step.grid, self.cached)
            logits = self.logits(x, text.cond).mul(1 / temperature)
            logits = guidance * logits[:1] + (1 - guidance) * logits[1:]
            drawn = sample(logits.reshape(1, -1, 2).clone(), top_p, generator).view(1, x.shape[1], -1)
            bits = drawn if tokens is None else tokens[step.order].to(drawn.dtype)
            code_sum, x = self.next_input(step, bits, code_sum)
            yield Made(step, logits, bits, code_sum)
        self.forget()

    def forget(self) -> None:
        """Drops keys and values; restore caches stay, as upstream leaves them."""
        for block in self.blocks:
            block.sa.past = None

    def logits(self, x: Tensor, cond: Tensor) -> Tensor:
        """(R, n, C) to (R, n, 2 * bits)."""
        with no_autocast(x):
            scale, shift = self.head_nm["ada_lin"](cond.float()).view(len(cond), 1, 2, -1).unbind(2)
            outputs: Tensor = self.head(modulated(x, scale, shift))
        return outputs

    def next_input(self, step: Step, bits: Tensor, code_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Bits (1, n, bits) to the code sum (1, Z, 1, Sh, Sw) and the tokens (R, n_next, C) of the scale that follows.

        That of a scale which is skipped is made too, and looked at by nobody, as upstream does.
        """
        plan, patch = self.plan, self.plan.tokenizer.patch
        codes = (2.0 * bits - 1.0) / math.sqrt(plan.tokenizer.code_channels)
        codes = codes.transpose(1, 2).unflatten(2, step.grid)  # (1, Z * patch ** 2, h, w)
        codes = F.pixel_shuffle(codes, patch).unsqueeze(2)  # (1, Z, 1, patch * h, patch * w)
        if step.scale + 1 == len(plan.schedule):
            return code_sum + codes, codes.new_empty(2, 0, 0)
        code_sum = code_sum + F.interpolate(codes, size=(1, *plan.code_grid), mode="trilinear")
        last = step is plan.steps[-1]
        grid = plan.schedule[step.scale + 1] if last else plan.steps[step.order + 1].grid
        small = F.interpolate(code_sum, size=(1, *plan.latents(grid)), mode="trilinear").squeeze(2)
        tokens = F.pixel_unshuffle(small, patch).flatten(2).transpose(1, 2)
        return code_sum, self.word_embed(tokens).repeat(2, 1, 1)


def no_autocast(x: Tensor) -> torch.autocast:
    """Float32 on the device of ``x``, whatever is around."""
    return torch.autocast(x.device.type, enabled=False)


def rope_table(schedule: Sequence[Grid], reference: Grid, head_dim: int) -> Tensor:
    """Cosines and sines of all scales, one behind the other: (2, 1, 1, 1, tokens, hd / 2)."""
    half, angles = head_dim // 2, list[Tensor]()
    with torch.device("cpu"):  # also where the model is made on no device
        inverse = 1.0 / 10000.0 ** (torch.arange(0, half, 2).float() / half)
        for grid in schedule:
            y, x = (
                torch.round(torch.arange(n) * (of / n))[:, None] * inverse
                for n, of in zip(grid, reference, strict=True)
            )
            both = (y[:, None].expand(*grid, -1), x[None].expand(*grid, -1))
            angles.append(torch.cat(both, dim=-1).flatten(0, 1))
    table = torch.cat(angles)
    return torch.stack((table.cos(), table.sin()))[:, None, None, None]


def sample(logits: Tensor, top_p: float, generator: torch.Generator, top_k: int = TOP_K) -> Tensor:
    """Top-k (0 keeps all) and top-p on (B, draws, V), which are overwritten, then one value for each: (B, draws)."""
    k = min(top_k or logits.shape[-1], logits.shape[-1])
    logits.masked_fill_(logits < logits.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True), -math.inf)
    ascending, order = logits.sort(dim=-1)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    dropped[..., -1:] = False
    logits.masked_fill_(dropped.scatter(-1, order, dropped), -math.inf)
    drawn = torch.multinomial(logits.softmax(dim=-1).flatten(0, 1), 1, replacement=True, generator=generator)
    return drawn.view(logits.shape[:2])
