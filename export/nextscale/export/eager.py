"""Running a plan in eager PyTorch: the reference that graphs are verified against and compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nextscale.export.models.resize import resizes_of
from nextscale.export.models.step import Draw, Prediction, no_tokens, predict
from nextscale.export.models.var import VAR, Conditioning
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.errors import InputError, PlanError
from nextscale.plan.types import Layer, Plan, Step, TapeWrite
from nextscale.runtime.noise import SAMPLING, SMOOTHING, step_uniforms
from nextscale.runtime.request import RANGES, check_number, check_tokens, check_word, whole

OnBlock = Callable[[int, int, Tensor], None]  # step order, layer index, residual stream (R, n, C)
Rows = tuple[Tensor, Tensor]  # keys and values (rows, R, H, hd)


@dataclass
class State:
    """What a picture carries from step to step: input map, code sum, tapes (rows, R, H, hd) and restore caches."""

    map: Tensor | None = None
    code_sum: Tensor | None = None
    tapes: dict[str, Rows] = field(default_factory=dict)
    caches: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class EagerStep:
    """One finished step: its prediction and its wall time in seconds."""

    step: Step
    prediction: Prediction
    seconds: float


@dataclass(frozen=True)
class Request:
    """What is generated: ``tokens`` forces the tokens of steps, by order; entries of -1 are sampled."""

    labels: Sequence[int]
    seed: int = 0
    guidance_scale: float = 1.5
    top_p: float = 1.0
    temperature: float = 1.0
    tokens: dict[int, Tensor] | None = None


class Eager:
    """A plan over a loaded transformer and tokenizer. Not thread-safe; deterministic for a seed.

    ``dtype_of_tapes`` follows the transformer's weights. ``device`` is where the modules live.
    """

    def __init__(self, plan: Plan, var: VAR, vae: VQVAE) -> None:
        self.plan, self.var, self.vae = plan, var.eval(), vae.eval()
        for resize in (var.resize, vae.quantize.resize):
            resize.prepare(resizes_of(plan))
            resize.to(var.pos_start.device)

    def draw(self, step: Step, request: Request) -> Draw:
        """The noise and the guidance weights of a step, on the model's device."""
        device, images = self.var.pos_start.device, len(request.labels)
        shape = (images, step.tokens_out, self.plan.model(step.weight_set).vocabulary)
        noise = [
            torch.from_numpy(step_uniforms(request.seed, range(images), step.order, stream, shape[1:])).to(device)
            for stream in ((SAMPLING, SMOOTHING) if step.sampling and step.sampling.smooth else (SAMPLING,))
        ]
        weights = [c + s * request.guidance_scale for c, s in self.plan.guidance.weights[step.scale]]
        forced = (request.tokens or {}).get(step.order)
        return Draw(
            torch.tensor([weights] * images, dtype=torch.float32, device=device),
            torch.full((images,), request.temperature, device=device),
            torch.full((images,), request.top_p, device=device),
            noise[0],
            (no_tokens(images, step) if forced is None else forced.to(torch.int32)).to(device),
            noise[1] if len(noise) > 1 else None,
        )

    @torch.inference_mode()
    def stream(
        self, request: Request, on_block: Callable[[int, int, Tensor], None] | None = None
    ) -> Iterator[EagerStep]:
        """Runs step by step. ``on_block(step order, layer index, x)`` sees the residual stream after every block."""
        self._check(request)
        labels = torch.tensor(request.labels, device=self.var.pos_start.device)
        cond, state = self.begin(labels), State()
        for step in self.plan.steps:
            start = time.perf_counter()
            prediction = self.run_step(step, cond, state, self.draw(step, request), on_block)
            yield EagerStep(step, prediction, time.perf_counter() - start)

    def begin(self, labels: Tensor) -> Conditioning:
        """What is computed once per picture, of labels (B,)."""
        return self.var.begin(labels, len(self.plan.guidance.rows))

    def _check(self, request: Request) -> None:
        """Refuses what the runtime refuses, so that both sides of a comparison are asked the same."""
        classes, forced = self.var.model.classes, dict(request.tokens or {})
        if not request.labels or not all(whole(label) and 0 <= label <= classes for label in request.labels):
            raise InputError(
                f"labels {list(request.labels)} are asked for; the model has 0..{classes}, one for a picture"
            )
        check_word("seed", request.seed)
        for name in RANGES:
            check_number(name, getattr(request, name))
        tokens = [None if (t := forced.pop(step.order, None)) is None else t.cpu() for step in self.plan.steps]
        check_tokens(self.plan, tokens, len(request.labels))
        if forced:
            raise InputError(
                f"tokens are forced at steps {sorted(forced)}; the plan has {len(self.plan.steps)}, from 0"
            )

    def run_step(
        self,
        step: Step,
        cond: Conditioning,
        state: State,
        draw: Draw,
        on_block: OnBlock | None = None,
    ) -> Prediction:
        """One step of the chain; ``state`` is updated."""
        source = cond.sos if state.map is None else state.map
        x = self.var.embed(step.scale, source, step.guidance_rows)
        for layer in step.layers:
            x = self.run_layer(x, layer, step, cond, state)
            if on_block:
                on_block(step.order, layer.index, x)
        logits = self.var.logits(x[:, -step.tokens_out :], cond.head)
        prediction = predict(
            self.vae.quantize, step, len(self.plan.schedule), self.plan.final_grid, logits, draw, state.code_sum
        )
        state.map, state.code_sum = prediction.next_map, prediction.code_sum
        return prediction

    def run_layer(self, x: Tensor, layer: Layer, step: Step, cond: Conditioning, state: State) -> Tensor:
        """One block: reads tapes and restore caches, leaves what the plan has it leave."""
        caches = {
            sub.name: (state.caches[sub.cache], self.plan.cache(sub.cache).grid)
            for sub in layer.sub_layers
            if sub.kept is not None and sub.cache
        }
        out = self.var.blocks[layer.index](
            x, cond.adaln[layer.index], layer, step.grid, self.var.resize, past_rows(layer, state.tapes), caches
        )
        for write in layer.writes:
            state.tapes[write.tape] = written(write, state.tapes.get(write.tape), (out.key, out.value))
        for sub in layer.sub_layers:
            if sub.name in out.caches and sub.cache:
                state.caches[sub.cache] = out.caches[sub.name]
        new_x: Tensor = out.x
        return new_x

    def generate(self, request: Request) -> tuple[np.ndarray, list[EagerStep]]:
        """Pictures (B, H, W, 3) float32 in [0, 1], and every step."""
        steps = list(self.stream(request))
        return self.decode(steps[-1].prediction.code_sum), steps

    @torch.inference_mode()
    def decode(self, code_sum: Tensor) -> np.ndarray:
        """Code sum (B, Z, Sh, Sw) to pictures (B, H, W, 3) float32 in [0, 1]."""
        pictures: np.ndarray = self.pixels(code_sum).permute(0, 2, 3, 1).cpu().numpy()
        return pictures

    def pixels(self, code_sum: Tensor) -> Tensor:
        """The same on the device, as the decoder leaves them: (B, 3, H, W)."""
        pictures: Tensor = self.vae.decode(code_sum)
        return pictures


def past_rows(layer: Layer, tapes: Mapping[str, Rows]) -> Rows | None:
    """The rows of earlier steps that a layer attends to, in the order of its segments; None where it has no past."""
    if any(s.gate for s in layer.past):
        raise PlanError(f"layer {layer.index} reads rows through a gate, which a VAR block does not have")
    parts = [tuple(t[s.start : s.start + s.length] for t in tapes[s.tape]) for s in layer.past]
    if len(parts) < 2:
        return (parts[0][0], parts[0][1]) if parts else None
    return torch.cat([k for k, _ in parts]), torch.cat([v for _, v in parts])


def written(write: TapeWrite, before: Rows | None, rows: Rows) -> Rows:
    """A tape after a write of ``rows``: behind its first ``write.start`` rows, or in place of all of them."""
    keys, values = before if before and write.mode == "append" else (rows[0][:0], rows[1][:0])
    if len(keys) < write.start or len(rows[0]) != write.length:
        raise PlanError(
            f"the plan leaves {write.length} rows at row {write.start} of the tape {write.tape!r}; "
            f"a VAR block leaves all of its {len(rows[0])}, and {len(keys)} rows are there"
        )
    return torch.cat((keys[: write.start], rows[0])), torch.cat((values[: write.start], rows[1]))
