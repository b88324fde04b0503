"""A VAR made by hand on ONNX Runtime, run: the graphs of dynamic_onnx.py in plain sessions, numpy between them.

No PyTorch is imported here, as a service would have none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nextscale.plan.resize import resize_matrix
from nextscale.plan.types import Grid, Plan, Step

Floats = NDArray[np.float32]
GRAPHS, TABLES = ("step", "codes", "decode"), "tables.npz"


def names(depth: int, kind: str) -> list[str]:
    """Of the keys, then of the values, of all layers: ``past`` or ``longer``."""
    return [f"{kind}.{what}.{i:02d}" for what in ("keys", "values") for i in range(depth)]


@dataclass
class Picture:
    """Pictures (B, H, W, 3) float32 in [0, 1], tokens (B, n) and guided logits (B, n, V) by step, seconds by graph."""

    pictures: Floats
    tokens: tuple[NDArray[np.int32], ...]
    logits: tuple[Floats, ...]
    seconds: dict[str, float] = field(default_factory=dict)


class DynamicSessions:
    """The three sessions, with default options but for the number of threads."""

    def __init__(self, folder: Path, plan: Plan, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.plan = plan
        self._step, self._codes, self._decode = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in GRAPHS
        )
        with np.load(folder / TABLES) as tables:
            self._classes, self._start, self._positions = (tables[n] for n in ("classes", "start", "positions"))

    def run(
        self,
        labels: Sequence[int],
        seed: int,
        guidance_scale: float,
        top_p: float,
        temperature: float,
        forced: Sequence[NDArray[np.int32]] | None = None,
        logits: bool = False,
    ) -> Picture:
        """Step by step; ``forced`` are the tokens of every step, (B, n), and ``logits`` asks for those."""
        plan, images, mark = self.plan, len(labels), time.perf_counter()
        sizes, random = plan.model(), np.random.default_rng(seed)
        cond = self._classes[[*labels, *[sizes.classes] * images]]
        x = cond[:, None] + self._start
        past = [np.zeros((2 * images, sizes.heads, 0, sizes.head_dim), np.float32)] * (2 * sizes.depth)
        code_sum = np.zeros((images, plan.tokenizer.code_channels, *plan.code_grid), np.float32)
        seconds, tokens, kept = dict[str, float](), list[NDArray[np.int32]](), list[Floats]()

        def lap(name: str) -> None:
            nonlocal mark
            before, mark = mark, time.perf_counter()
            seconds[name] = mark - before

        lap("begin")
        inputs = ["x", "cond", *names(sizes.depth, "past")]
        for step in plan.steps:
            both, *past = self._step.run(None, dict(zip(inputs, (x, cond, *past), strict=True)))
            t = np.float32(guidance_scale * step.scale / max(len(plan.schedule) - 1, 1))
            guided = (1 + t) * both[:images] - t * both[images:]
            assert step.sampling is not None
            found = drawn(guided / np.float32(temperature), step.sampling.top_k, top_p, random)
            tokens.append(found.astype(np.int32) if forced is None else forced[step.order])
            code_sum, x = self._codes.run(None, self._codes_of(step, tokens[-1], code_sum))
            kept += [guided] if logits else []
            lap(f"step_{step.order:02d}")
        pictures: Floats = self._decode.run(None, {"code_sum": code_sum})[0].transpose(0, 2, 3, 1)
        lap("decode")
        return Picture(pictures, tuple(tokens), tuple(kept), seconds)

    def _codes_of(self, step: Step, tokens: NDArray[np.int32], code_sum: Floats) -> dict[str, NDArray[Any]]:
        """After the last step its own grid stands for the next, which nobody looks at."""
        plan, size = self.plan, self.plan.code_grid
        after: Grid = step.next_input.grid or step.grid
        scale = step.scale + 1 if step.next_input.grid else step.scale
        start = sum(h * w for h, w in plan.schedule[:scale])
        return {
            "tokens": tokens.reshape(-1, *step.grid).astype(np.int64),
            "code_sum": code_sum,
            "up_h": _matrix("bicubic", step.grid[0], size[0]),
            "up_w": _matrix("bicubic", step.grid[1], size[1]),
            "down_h": _matrix("area", size[0], after[0]),
            "down_w": _matrix("area", size[1], after[1]),
            "phi": np.array([step.next_input.phi], np.int64),
            "position": self._positions[start : start + after[0] * after[1]],
        }


def drawn(logits: Floats, top_k: int, top_p: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Tokens (B, n) of logits (B, n, V): of the ``top_k`` largest (0: all), those of a mass of ``top_p``, by Gumbel."""
    k = top_k or logits.shape[-1]
    places = np.argpartition(logits, -k, axis=-1)[..., -k:] if k < logits.shape[-1] else None
    largest = logits if places is None else np.take_along_axis(logits, places, axis=-1)
    order = np.argsort(-largest, axis=-1)
    ranked = np.take_along_axis(largest, order, axis=-1)
    mass = np.exp(ranked - ranked[..., :1])
    mass /= mass.sum(axis=-1, keepdims=True)
    ranked = np.where(np.cumsum(mass, axis=-1) - mass < top_p, ranked, -np.inf)
    chosen = (ranked + random.gumbel(size=ranked.shape).astype(np.float32)).argmax(axis=-1)[..., None]
    chosen = np.take_along_axis(order, chosen, axis=-1)
    found = chosen if places is None else np.take_along_axis(places, chosen, axis=-1)
    return found[..., 0]


def _matrix(mode: str, n_in: int, n_out: int) -> Floats:
    return np.eye(n_in, dtype=np.float32) if n_in == n_out else np.array(resize_matrix(mode, n_in, n_out), np.float32)
