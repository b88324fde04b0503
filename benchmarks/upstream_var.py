"""VAR as upstream's eager code runs it, plain and with FastVAR: what we are measured against.

Facts of FoundationVision/VAR, the sheet's sections 1.2 and 1.5, written anew. Kept is what costs time or memory: adaLN
summed or multiplied anew in every block at every scale, biases joined for every call, caches of keys that grow by
``torch.cat`` as (R, H, T, hd) and get the last scale's rows too, sampling by a sort of the whole vocabulary and
``torch.multinomial``. FastVAR, which upstream has for other models alone, as it is there (upstream_fastvar.py).
Float32, or in an autocast around it. What is kept and cached is the plan's, so that both sides run the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from upstream_blocks import FeedForward, SelfAttention, modulated, with_key_biases
from upstream_fastvar import Remembering
from upstream_infinity import sample
from upstream_vae import UpstreamTokenizer

from nextscale.plan.types import Grid, Layer, Model, Plan, Step


class Made(NamedTuple):
    """A finished step: guided logits (B, n, V), tokens (B, n) int64, the code sum (B, Z, Sh, Sw)."""

    step: Step
    logits: Tensor
    tokens: Tensor
    code_sum: Tensor


class Settings(NamedTuple):
    """Of all pictures of a call; ``temperature``, which upstream does not have, divides guided logits."""

    guidance: float
    top_p: float
    temperature: float
    seed: int


class Block(Remembering):
    """Attention and FFN, each in adaLN of its own or the shared one."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.attn, self.ffn = SelfAttention(model), FeedForward(model)
        if model.shared_adaln:
            self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, model.width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(model.width, 6 * model.width))

    def forward(self, x: Tensor, cond: Tensor, layer: Layer, grid: Grid, cached: Grid | None) -> Tensor:
        """The residual stream (R, n, C); ``cond`` is (R, C), or what the shared adaLN made of it, (R, 1, 6, C)."""
        six = cond + self.ada_gss if cond.ndim == 4 else self.ada_lin(cond).view(len(cond), 1, 6, -1)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six.unbind(2)  # (R, 1, C) each

        def attn(tokens: Tensor, index: Tensor | None) -> Tensor:
            update: Tensor = self.attn(modulated(tokens, scale1, shift1)).mul_(gamma1)
            return update

        def ffn(tokens: Tensor, index: Tensor | None) -> Tensor:
            update: Tensor = self.ffn(modulated(tokens, scale2, shift2)).mul(gamma2)
            return update

        return self.updated(x, {"attn": attn, "ffn": ffn}, layer, grid, cached)


class UpstreamVAR(nn.Module):
    """The transformer under the published keys, and the tokenizer; ``over`` makes one of two state dicts."""

    lvl_1L: Tensor

    def __init__(self, plan: Plan, tokenizer: UpstreamTokenizer) -> None:
        super().__init__()
        model = plan.model()
        self.plan, self.tokenizer, width = plan, (tokenizer,), model.width  # a tuple: its keys are not ours
        self.word_embed = nn.Linear(model.code_channels, width)
        self.class_emb = nn.Embedding(model.classes + 1, width)
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.pos_1LC = nn.Parameter(torch.empty(1, sum(h * w for h, w in plan.schedule), width))
        self.lvl_embed = nn.Embedding(len(plan.schedule), width)
        self.register_buffer("lvl_1L", levels(plan.schedule), persistent=False)
        self.shared_ada_lin: nn.Module = nn.Identity()
        if model.shared_adaln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.depth))
        self.head_nm = nn.ModuleDict({"ada_lin": nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))})
        self.head = nn.Linear(width, model.vocabulary)
        self.cached = plan.caches[0].grid if plan.caches else None

    @classmethod
    def over(cls, plan: Plan, var: Mapping[str, Tensor], vae: Mapping[str, Tensor]) -> Self:
        """Over the tensors of state dicts, which are shared."""
        with torch.device("meta"):
            made = cls(plan, UpstreamTokenizer(plan.tokenizer, vae))
        made.load_state_dict(with_key_biases(var), assign=True)
        return made.eval().requires_grad_(False)

    @torch.inference_mode()
    def stream(self, labels: Tensor, settings: Settings, tokens: Sequence[Tensor] | None = None) -> Iterator[Made]:
        """Step by step for labels (B,) int64; ``tokens`` forces those of every step, (B, n)."""
        plan, generator, images = self.plan, torch.Generator(labels.device), len(labels)
        generator.manual_seed(settings.seed)
        self.forget()
        cond, positions = self.conditions(labels), self.positions()
        x = cond.unsqueeze(1) + self.pos_start + positions[:, :1]
        code_sum = cond.new_zeros(images, plan.tokenizer.code_channels, *plan.code_grid)
        for step in plan.steps:
            both = self.passed(x, cond, step)
            t = settings.guidance * (step.scale / (len(plan.schedule) - 1) if step.scale else 0.0)
            logits = (1 + t) * both[:images] - t * both[images:]
            assert step.sampling is not None
            cooled = logits / settings.temperature if settings.temperature != 1 else logits.clone()
            drawn = sample(cooled, settings.top_p, generator, step.sampling.top_k)
            drawn = drawn if tokens is None else tokens[step.order].long()
            code_sum, after = self.tokenizer[0].next_input(
                step, self.tokenizer[0].codes(drawn, step.grid), code_sum, plan.code_grid
            )
            if after is not None:
                x = self.embedded(after, positions, step.scale + 1)
            yield Made(step, logits, drawn, code_sum)
        self.forget()

    @torch.inference_mode()
    def decode(self, code_sum: Tensor) -> Tensor:
        """Code sum (B, Z, Sh, Sw) to pictures (B, 3, H, W) in [0, 1]."""
        return self.tokenizer[0].decode(code_sum)

    def conditions(self, labels: Tensor) -> Tensor:
        """Of all rows (2 B, C): the labels', then no class."""
        cond: Tensor = self.class_emb(torch.cat((labels, torch.full_like(labels, self.plan.model().classes))))
        return cond

    def positions(self) -> Tensor:
        """Absolute and level positions of all tokens: (1, L, C)."""
        added: Tensor = self.lvl_embed(self.lvl_1L) + self.pos_1LC
        return added

    def embedded(self, after: Tensor, positions: Tensor, scale: int) -> Tensor:
        """The next map (B, Z, h, w) as the tokens of a scale, for all rows: (2 B, n, C)."""
        start = sum(h * w for h, w in self.plan.schedule[:scale])
        tokens = after.flatten(2).transpose(1, 2)
        x: Tensor = self.word_embed(tokens) + positions[:, start : start + tokens.shape[1]]
        return x.repeat(2, 1, 1)

    def passed(self, x: Tensor, cond: Tensor, step: Step) -> Tensor:
        """Tokens (2 B, n, C) through the blocks and the head: (2 B, n, V). Keys and values are remembered."""
        shared = self.shared_ada_lin(cond)
        if self.plan.model().shared_adaln:
            shared = shared.view(len(cond), 1, 6, -1)
        for layer in step.layers:
            x = self.blocks[layer.index](x, shared, layer, step.grid, self.cached)
        scale, shift = self.head_nm["ada_lin"](cond).view(len(cond), 1, 2, -1).unbind(2)
        logits: Tensor = self.head(modulated(x, scale, shift)).float()
        return logits

    def forget(self) -> None:
        """Drops keys and values; restore caches stay, as upstream leaves them."""
        for block in self.blocks:
            block.attn.past = None  # type: ignore[union-attr]


def levels(schedule: Sequence[Grid]) -> Tensor:
    """The scale of every token, (1, L) int64."""
    with torch.device("cpu"):  # also where the model is made on no device
        lengths = torch.tensor([h * w for h, w in schedule])
        return torch.arange(len(lengths)).repeat_interleave(lengths).unsqueeze(0)
