"""Running a plan in eager PyTorch: the reference that graphs are verified against and compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nextscale.export.models.contract import Conditions, Rotation, TokenizerModel, Transformer
from nextscale.export.models.resize import resizes_of
from nextscale.export.models.step import Draw, Prediction, no_tokens, predict
from nextscale.plan.conditioning import block_conditions
from nextscale.plan.errors import InputError, PlanError
from nextscale.plan.types import Layer, Plan, Step, TapeWrite
from nextscale.runtime.arguments import whole
from nextscale.runtime.noise import DIFFUSION, SAMPLING, SMOOTHING, step_uniforms
from nextscale.runtime.request import by_scale, check_number, check_tokens, check_word, guidance_rows
from nextscale.runtime.subjects import Subject, make_subjects

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
    """What is generated: ``subjects`` and ``negative`` are what :func:`make_subjects` takes, classes or features.

    ``guidance_scale`` is one number, or one for every scale of the schedule. ``tokens`` forces the tokens of steps, by
    order; entries of -1 are sampled.
    """

    subjects: Sequence[Subject]
    seed: int = 0
    guidance_scale: float | Sequence[float] = 1.5
    top_p: float = 1.0
    temperature: float = 1.0
    tokens: dict[int, Tensor] | None = None
    negative: Subject | Sequence[Subject] = None

    def __len__(self) -> int:
        return len(self.subjects)


class Eager:
    """A plan over a loaded transformer and tokenizer. Not thread-safe; deterministic for a seed.

    ``device`` is where the modules live; the dtype of tapes follows the transformer's weights.
    """

    def __init__(self, plan: Plan, var: Transformer, vae: TokenizerModel) -> None:
        self.plan, self.var, self.vae = plan, var.eval(), vae.eval()
        for resize in (var.resize, vae.quantize.resize):
            resize.prepare(resizes_of(plan))
            resize.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.var.word_embed.weight.device

    def draw(self, step: Step, request: Request) -> Draw:
        """The noise and the guidance weights of a step, on the model's device."""
        device, images, model = self.device, len(request), self.plan.model(step.weight_set)

        def uniforms(stream: int, *shape: int) -> Tensor:
            drawn = step_uniforms(request.seed, range(images), step.order, stream, (step.tokens_out, *shape))
            return torch.from_numpy(drawn).to(device)

        smooth = step.sampling is not None and step.sampling.smooth
        scales = by_scale(self.plan, [request.guidance_scale] * images, images)
        forced = (request.tokens or {}).get(step.order)
        return Draw(
            torch.from_numpy(guidance_rows(self.plan, step, scales)).to(device),
            torch.full((images,), request.temperature, device=device),
            torch.full((images,), request.top_p, device=device),
            uniforms(SAMPLING, model.head_outputs),
            (no_tokens(images, step, model.draws) if forced is None else forced.to(torch.int32)).to(device),
            uniforms(SMOOTHING, model.head_outputs) if smooth else None,
            uniforms(DIFFUSION, model.diffusion.steps, model.code_channels)
            if step.diffusion and model.diffusion
            else None,
        )

    @torch.inference_mode()
    def stream(
        self, request: Request, on_block: Callable[[int, int, Tensor], None] | None = None
    ) -> Iterator[EagerStep]:
        """Runs step by step. ``on_block(step order, layer index, x)`` sees the residual stream after every block."""
        cond, state = self.begin(self.given(request)), State()
        for step in self.plan.steps:
            start = time.perf_counter()
            prediction = self.run_step(step, cond, state, self.draw(step, request), on_block)
            yield EagerStep(step, prediction, time.perf_counter() - start)

    def begin(self, given: Mapping[str, Tensor]) -> Conditions:
        """What is computed once per picture, of what :meth:`given` makes of a request."""
        return self.var.begin(given, len(self.plan.guidance.rows))

    def given(self, request: Request) -> dict[str, Tensor]:
        """What ``begin`` takes, on the model's device.

        Refuses what the runtime refuses, so that both sides of a comparison are asked the same. A class may also be
        given by the number behind the last, which is no class.
        """
        model, forced = self.plan.model(), dict(request.tokens or {})
        null = [None if whole(s) and s == model.classes else s for s in request.subjects]
        subjects = make_subjects(model, null, request.negative)
        check_word("seed", request.seed)
        by_scale(self.plan, [request.guidance_scale] * len(request), len(request))
        for name in ("top_p", "temperature"):
            check_number(name, getattr(request, name))
        tokens = [None if (t := forced.pop(step.order, None)) is None else t.cpu() for step in self.plan.steps]
        check_tokens(self.plan, tokens, len(request))
        if forced:
            raise InputError(
                f"tokens are forced at steps {sorted(forced)}; the plan has {len(self.plan.steps)}, from 0"
            )
        return {name: torch.from_numpy(array).to(self.device) for name, array in subjects.given.items()}

    def run_step(
        self,
        step: Step,
        cond: Conditions,
        state: State,
        draw: Draw,
        on_block: OnBlock | None = None,
    ) -> Prediction:
        """One step of the chain; ``state`` is updated."""
        source = cond["sos"] if state.map is None else state.map
        x = self.var.embed(step, source, step.guidance_rows)
        rotation = self.var.rotation(step, cond)
        for layer in step.layers:
            x = self.run_layer(x, layer, step, cond, state, rotation)
            if on_block:
                on_block(step.order, layer.index, x)
        prediction = predict(self.plan, step, self.var, self.vae.quantize, x, cond["head"], draw, state.code_sum)
        state.map, state.code_sum = prediction.next_map, prediction.code_sum
        return prediction

    def run_layer(
        self,
        x: Tensor,
        layer: Layer,
        step: Step,
        cond: Conditions,
        state: State,
        rotation: Rotation | None,
    ) -> Tensor:
        """One block: reads tapes and restore caches, leaves what the plan has it leave."""
        caches = {
            sub.name: (state.caches[sub.cache], self.plan.cache(sub.cache).grid)
            for sub in layer.sub_layers
            if sub.kept is not None and sub.cache
        }
        own = {c.part: cond[c.name] for c in block_conditions(self.plan.model(step.weight_set), layer.index)}
        block = self.var.layer(layer.index)
        out = block(x, own, layer, step.grid, self.var.resize, past_rows(layer, state.tapes), caches, rotation)
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
        raise PlanError(f"layer {layer.index} reads rows through a gate, which its block does not have")
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
            f"the block leaves all of its {len(rows[0])}, and {len(keys)} rows are there"
        )
    return torch.cat((keys[: write.start], rows[0])), torch.cat((values[: write.start], rows[1]))
