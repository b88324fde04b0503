"""Upstream's models behind the one face of a comparison: pictures of VAR and of Infinity, in float32 or in autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


Stream = Callable[[Sequence[Tensor] | None], Iterator[Made]]  # of forced tokens
Asked = Callable[[Ask], Stream]  # what is asked, ready on the device


class UpstreamSide:
    """As upstream's eager code does it. A step's seconds include drawing tokens by ``torch.multinomial``.

    ``compute`` is the dtype of the autocast around all of it, None for float32. As no parameter asks for a gradient,
    autocast casts weights anew in every call.
    """

    settles = 0

    def __init__(
        self, asked: Asked, decode: Callable[[Tensor], Tensor], device: torch.device, compute: torch.dtype | None
    ) -> None:
        self.asked, self.decode, self.device, self.compute = asked, decode, device, compute

    def versions(self) -> dict[str, str]:
        """The version of PyTorch."""
        return {"torch": str(torch.__version__)}

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """Step by step; on a GPU nothing waits between steps but what upstream itself waits for."""
        forced = None if ask.tokens is None else [torch.from_numpy(each).to(self.device) for each in ask.tokens]
        tokens, kept = list[Tensor](), list[Tensor]()
        with torch.inference_mode(), as_its_demo(self.device, self.compute):
            stream = self.asked(ask)
            clock = Clock(self.device.type == "cuda")
            steps = stream(forced)
            clock.mark("begin")
            for made in steps:
                clock.mark(f"step_{made.step.order:02d}")
                tokens.append(made.tokens)
                kept += [made.logits] if logits else []
            pictures = self.decode(made.code_sum).permute(0, 2, 3, 1).float().cpu().numpy()
            clock.mark("decode")
        seconds, total = clock.read()
        drawn = tuple(each.int().cpu().numpy() for each in tokens)
        return Run(drawn, pictures, seconds, total, tuple(each.float().cpu().numpy() for each in kept))


@contextmanager
def as_its_demo(device: torch.device, compute: torch.dtype | None) -> Iterator[None]:
    """Autocast to a dtype, and TF32 in what that leaves in float32, as VAR's demo has it; for None neither.

    An Infinity's gets both as well, whatever the dtype, so that upstream is not held back.
    """
    if compute is None:
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        with torch.autocast(device.type, compute):
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


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


def _classes(model: UpstreamVAR) -> Asked:
    def asked(ask: Ask) -> Stream:
        settings = Settings(ask.guidance_scale, ask.top_p, ask.temperature, ask.seed)
        labels = torch.tensor(ask.labels, device=model.pos_start.device)
        return lambda forced: model.stream(labels, settings, forced)

    return asked


def _texts(model: UpstreamInfinity) -> Asked:
    def asked(ask: Ask) -> Stream:
        (number,) = ask.labels
        subject = posed(model.plan.model(), [number])[0]
        assert isinstance(subject, tuple)
        features = torch.from_numpy(subject[0][: subject[1]]).to(model.pos_start.device)
        settings = ask.guidance_scale, ask.temperature, ask.top_p, ask.seed
        return lambda forced: model.stream(model.begin(features), *settings, forced)

    return asked
