"""What the trainings of the demo model share: schedule by the clock, resuming, Ctrl-C, data parallelism.

Under ``torchrun`` every process draws its own batches and gradients are averaged: on a machine with other work to do,
two processes of one thread each lose far less time than one of two threads, whose every operator waits for both.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn


def rank() -> int:
    """This process's number among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


def join_workers() -> None:
    """Joins the other processes where ``torchrun`` started this one."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        torch.manual_seed(torch.initial_seed() + 1000 * rank())


def agreed(value: float) -> float:
    """The first process's value, for all."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def meet() -> None:
    """Every process waits here for all."""
    if dist.is_initialized():
        dist.barrier()


def spread(tensors: Iterable[Tensor]) -> None:
    """These tensors become the first process's, everywhere."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def average_gradients(model: nn.Module) -> None:
    """Gradients become their mean over the processes (those that are missing somewhere count as zero)."""
    if not dist.is_initialized():
        return
    parameters = list(model.parameters())
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    parts = flat.div_(dist.get_world_size()).split([p.numel() for p in parameters])
    for p, part in zip(parameters, parts, strict=True):
        p.grad = part.view_as(p)


@dataclass
class Clock:
    """How far a training is, by wall time: 0 at its start, 1 after ``minutes`` of running; survives resuming."""

    minutes: float
    spent: float = 0.0  # seconds of earlier runs
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return self.spent + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / (60 * self.minutes))


def learning_rate(peak: float, step: int, progress: float, warmup: int = 150) -> float:
    """Linear warm-up over steps, then a cosine over the clock, ending at a hundredth of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * cosine)


@dataclass
class Training:
    """One model in training: weights, optimiser, position; saved to and resumed from one file."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    clock: Clock
    path: Path
    step: int = 0
    extra: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False
    _saved: float = field(default_factory=time.monotonic)

    def resume(self) -> bool:
        """Continues from the file, where there is one."""
        if not self.path.exists():
            return False
        state = torch.load(self.path, weights_only=True)
        meet()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.clock.spent, self.extra = state["step"], state["seconds"], state["extra"]
        if rank() == 0:
            torch.set_rng_state(state["rng"])
        else:
            torch.manual_seed(1000 * rank() + self.step)
        return True

    def save(self) -> None:
        """Writes the file whole or not at all."""
        if rank() > 0:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.clock.seconds,
            "extra": self.extra,
            "rng": torch.get_rng_state(),
        }
        half = self.path.with_suffix(".tmp")
        torch.save(state, half)
        half.replace(self.path)
        self._saved = time.monotonic()

    def steps(self, peak: float, every: float = 120.0) -> Iterator[float]:
        """Progress before every step until the time is over or someone interrupts; sets the rate, saves on its way."""
        spread((*self.model.parameters(), *self.model.buffers()))
        with _interruptible(self):
            while (progress := agreed(2.0 if self.stopped else self.clock.progress)) < 1.0:
                rate = learning_rate(peak, self.step, progress)
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * group.get("factor", 1.0)
                yield progress
                self.step += 1
                if time.monotonic() - self._saved > every:
                    self.save()
        self.save()
        if progress > 1.0:
            raise KeyboardInterrupt

    def update(self, loss: Tensor, clip: float = 1.0) -> None:
        """One step of the optimiser down this loss; a loss that is no number changes nothing."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.model)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if torch.isfinite(norm):
            self.optimizer.step()

    def report(self, **figures: float) -> None:
        """One line: where we are, the losses, what is left."""
        if rank() > 0:
            return
        left = 60 * self.clock.minutes - self.clock.seconds
        rest = "  ".join(f"{name} {value:.4f}" for name, value in figures.items())
        print(f"step {self.step:6d}  {100 * self.clock.progress:5.1f} %  {rest}  {left / 60:.1f} min left", flush=True)


def save_weights(module: nn.Module, path: Path) -> None:
    """A module as float32 safetensors under its published keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().float().contiguous() for k, v in module.state_dict().items()}, path)


@contextmanager
def _interruptible(training: Training) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the training after the step at hand, saved."""

    def stop(*_: object) -> None:
        training.stopped = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
