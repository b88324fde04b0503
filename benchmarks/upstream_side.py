"""Upstream's models behind the one face of a comparison: pictures of VAR and of Infinity, in float32 or in autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from upstream_infinity import UpstreamInfinity
from upstream_var import Settings, UpstreamVAR

from nextscale.compare.clock import Clock
from nextscale.compare.posed import posed
from nextscale.compare.sides import Ask, Run
from nextscale.export.checkpoint import Checkpoint
from nextscale.plan.types import Plan, Step


class Made(Protocol):
    """A finished step of either model: guided logits (B, n, V), tokens as they are forced, the code sum."""

    @property
    def step(self) -> Step: ...
    @property
    def logits(self) -> Tensor: ...
    @property
    def tokens(self) -> Tensor: ...
    @property
    def code_sum(self) -> Tensor: ...


Stream = Callable[[Ask, Sequence[Tensor] | None], Iterator[Made]]


class UpstreamSide:
    """As upstream's eager code does it. A step's seconds include drawing tokens by ``torch.multinomial``.

    ``compute`` is the dtype of the autocast around all of it, as upstream's demos have it; None for float32.
    """

    settles = 0

    def __init__(
        self,
        stream: Stream,
        decode: Callable[[Tensor], Tensor],
        device: torch.device,
        compute: torch.dtype | None = None,
    ) -> None:
        self.stream, self.decode, self.device, self.compute = stream, decode, device, compute

    def versions(self) -> dict[str, str]:
        """The version of PyTorch."""
        return {"torch": str(torch.__version__)}

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """Step by step; on a GPU nothing waits between steps but what upstream itself waits for."""
        forced = None if ask.tokens is None else [torch.from_numpy(each).to(self.device) for each in ask.tokens]
        made, clock = list[Made](), Clock(self.device.type == "cuda")
        with torch.inference_mode(), autocast(self.device, self.compute):
            steps = self.stream(ask, forced)
            clock.mark("begin")
            for step in steps:
                made.append(step)
                clock.mark(f"step_{step.step.order:02d}")
            pictures = self.decode(made[-1].code_sum).permute(0, 2, 3, 1).float().cpu().numpy()
        clock.mark("decode")
        seconds, total = clock.read()
        tokens = tuple(step.tokens.int().cpu().numpy() for step in made)
        kept = tuple(step.logits.float().cpu().numpy() for step in made) if logits else ()
        return Run(tokens, pictures, seconds, total, kept)


def autocast(device: torch.device, compute: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to a dtype, nothing for None."""
    return torch.autocast(device.type, compute) if compute else nullcontext()


def upstream_side(checkpoint: Checkpoint, plan: Plan, compute: torch.dtype | None = None) -> UpstreamSide:
    """The side of a loaded checkpoint, where that is; its tensors are shared, the weights of Infinity's blocks cast.

    An Infinity makes one picture at a time, and its code sum is decoded by our eager decoder.
    """
    device, state = checkpoint.var.word_embed.weight.device, checkpoint.var.state_dict()
    if plan.model().text is None:
        var = UpstreamVAR.over(plan, state, checkpoint.vae.state_dict()).to(device)
        return UpstreamSide(_classes(var), var.decode, device, compute)
    infinity, vae = UpstreamInfinity.over(plan, state).to(device), checkpoint.vae
    if compute:
        in_half(infinity, compute)
    return UpstreamSide(_texts(infinity), lambda code_sum: vae.decode(code_sum.squeeze(2)), device, compute)


def in_half(model: UpstreamInfinity, compute: torch.dtype) -> None:
    """Casts the weights of blocks, as upstream does before it makes pictures."""
    for block in model.blocks:
        block.to(compute)
        block.ca_norm.float()  # computed in float32 all the same: a GPU's autocast takes weights of either dtype


def _classes(model: UpstreamVAR) -> Stream:
    def stream(ask: Ask, forced: Sequence[Tensor] | None) -> Iterator[Made]:
        settings = Settings(ask.guidance_scale, ask.top_p, ask.temperature, ask.seed)
        return model.stream(torch.tensor(ask.labels, device=model.pos_start.device), settings, forced)

    return stream


def _texts(model: UpstreamInfinity) -> Stream:
    def stream(ask: Ask, forced: Sequence[Tensor] | None) -> Iterator[Made]:
        (number,) = ask.labels
        subject = posed(model.plan.model(), [number])[0]
        assert isinstance(subject, tuple)
        features, length = subject
        text = model.begin(torch.from_numpy(features[:length]).to(model.pos_start.device))
        return model.stream(text, ask.guidance_scale, ask.temperature, ask.top_p, ask.seed, forced)

    return stream
