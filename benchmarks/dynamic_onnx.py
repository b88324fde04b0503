"""VAR by hand on ONNX Runtime: what one does without this project. One step graph of dynamic lengths for all steps.

Upstream's model through ``torch.onnx.export`` (upstream_var.py): tokens and past rows are dynamic axes, keys and values
go in and come out longer by ``Concat``. A graph of the code sum and the decoder stand beside it. Sessions have ONNX
Runtime's default options but for the number of threads; between them numpy guides, filters and draws.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from upstream_vae import UpstreamTokenizer
from upstream_var import UpstreamVAR

from nextscale.compare.sides import Ask, Run
from nextscale.plan.resize import resize_matrix
from nextscale.plan.types import Grid, Plan, Step

Floats = NDArray[np.float32]
GRAPHS, TABLES = ("step", "codes", "decode"), "tables.npz"


class StepGraph(nn.Module):
    """Tokens (R, n, C), conditions (R, C) and past keys and values (R, H, T, hd): logits (R, n, V), longer rows."""

    def __init__(self, model: UpstreamVAR) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, cond: Tensor, keys: list[Tensor], values: list[Tensor]) -> tuple[Tensor, ...]:
        for block, *past in zip(self.model.blocks, keys, values, strict=True):
            block.attn.past = tuple(past)  # type: ignore[union-attr]
        logits = self.model.passed(x, cond, self.model.plan.steps[-1])
        longer: list[tuple[Tensor, Tensor]] = [block.attn.past for block in self.model.blocks]  # type: ignore[union-attr,misc]
        self.model.forget()
        return (logits, *(k for k, _ in longer), *(v for _, v in longer))


class CodesGraph(nn.Module):
    """Tokens (B, h, w) int64 and the code sum (B, Z, S, S): the new one, and all rows' next tokens (2 B, n, C).

    Resizes are matrices: ``up_*`` (S, h), ``down_*`` (h of the next, S). ``phi`` is the number of the convolution,
    ``position`` (n, C) that of the next tokens.
    """

    def __init__(self, model: UpstreamVAR) -> None:
        super().__init__()
        tensors, quantizer = model.tokenizer[0].tensors, "quantize.quant_resi.qresi_ls"
        self.embed, self.codebook = model.word_embed, tensors["quantize.embedding.weight"]
        count = model.plan.tokenizer.phi
        self.weights, self.biases = (
            torch.stack([tensors[f"{quantizer}.{j}.{what}"] for j in range(count)]) for what in ("weight", "bias")
        )

    def forward(
        self,
        tokens: Tensor,
        code_sum: Tensor,
        up_h: Tensor,
        up_w: Tensor,
        down_h: Tensor,
        down_w: Tensor,
        phi: Tensor,
        position: Tensor,
    ) -> tuple[Tensor, Tensor]:
        full = up_h @ nn.functional.embedding(tokens, self.codebook).permute(0, 3, 1, 2) @ up_w.T
        weight, bias = self.weights.index_select(0, phi).squeeze(0), self.biases.index_select(0, phi).squeeze(0)
        code_sum = code_sum + 0.5 * full + 0.5 * nn.functional.conv2d(full, weight, bias, padding=1)
        small = down_h @ code_sum @ down_w.T
        return code_sum, (self.embed(small.flatten(2).transpose(1, 2)) + position).repeat(2, 1, 1)


def export_dynamic(model: UpstreamVAR, folder: Path) -> Path:
    """The three graphs and the tables that begin a picture, in ``folder``, which is new."""
    part = folder.with_name(f"{folder.name}.partial")
    part.mkdir(parents=True, exist_ok=True)
    plan, sizes = model.plan, model.plan.model()
    rows, past = (torch.zeros(2, sizes.heads, 3, sizes.head_dim) for _ in range(2)), torch.export.Dim.DYNAMIC
    key, value = rows
    lengths = {0: past, 2: past}
    x, cond = torch.zeros(2, 4, sizes.width), torch.zeros(2, sizes.width)
    layers = range(sizes.depth)
    _export(
        StepGraph(model),
        (x, cond, [key.clone() for _ in layers], [value.clone() for _ in layers]),
        ({0: past, 1: past}, {0: past}, [lengths for _ in layers], [lengths for _ in layers]),
        ["x", "cond", *_names(sizes.depth, "past")],
        ["logits", *_names(sizes.depth, "longer")],
        part / "step.onnx",
    )
    z, (h, w) = plan.tokenizer.code_channels, plan.code_grid
    sums = torch.zeros(2, z, h, w)
    given = [torch.zeros(2, 2, 3, dtype=torch.int64), sums, torch.zeros(h, 2), torch.zeros(w, 3)]
    given += [torch.zeros(4, h), torch.zeros(5, w), torch.zeros(1, dtype=torch.int64), torch.zeros(20, sizes.width)]
    names = ["tokens", "code_sum", "up_h", "up_w", "down_h", "down_w", "phi", "position"]
    free = ({0: past, 1: past, 2: past}, {0: past}, {1: past}, {1: past}, {0: past}, {0: past}, None, {0: past})
    _export(CodesGraph(model), tuple(given), free, names, ["code_sum.out", "x"], part / "codes.onnx")
    decoder: UpstreamTokenizer = model.tokenizer[0]
    _export(decoder, (sums,), ({0: past},), ["code_sum"], ["pictures"], part / "decode.onnx")
    start = model.pos_start[0] + model.positions()[0, :1]
    np.savez(part / TABLES, classes=model.class_emb.weight, start=start, positions=model.positions()[0])
    return part.rename(folder)


def _names(depth: int, kind: str) -> list[str]:
    return [f"{kind}.{what}.{i:02d}" for what in ("keys", "values") for i in range(depth)]


def _export(
    module: nn.Module, given: tuple[Any, ...], free: Any, inputs: list[str], outputs: list[str], to: Path
) -> None:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "While compiling, we found certain side effects")  # keys that are remembered
        warnings.filterwarnings("ignore", "`isinstance", FutureWarning)  # PyTorch's own
        torch.onnx.export(
            module.eval(),
            given,
            to,
            dynamo=True,
            dynamic_shapes=free,
            input_names=inputs,
            output_names=outputs,
            external_data=True,
            verbose=False,
        )


class DynamicSide:
    """Those graphs as a side of a comparison."""

    settles = 0

    def __init__(self, folder: Path, plan: Plan, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.plan, self._version = plan, str(onnxruntime.__version__)
        self._step, self._codes, self._decode = (
            onnxruntime.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
            for name in GRAPHS
        )
        with np.load(folder / TABLES) as tables:
            self._classes, self._start, self._positions = (tables[n] for n in ("classes", "start", "positions"))

    def versions(self) -> dict[str, str]:
        """The version of ONNX Runtime."""
        return {"onnxruntime": self._version}

    def run(self, ask: Ask, logits: bool = False) -> Run:
        """Step by step."""
        plan, images, seconds, start = self.plan, len(ask.labels), dict[str, float](), time.perf_counter()
        sizes, random = plan.model(), np.random.default_rng(ask.seed)
        cond = self._classes[[*ask.labels, *[sizes.classes] * images]]
        x = cond[:, None] + self._start
        past = [np.zeros((2 * images, sizes.heads, 0, sizes.head_dim), np.float32)] * (2 * sizes.depth)
        code_sum = np.zeros((images, plan.tokenizer.code_channels, *plan.code_grid), np.float32)
        tokens, kept, mark = [], [], time.perf_counter()
        seconds["begin"] = mark - start
        for step in plan.steps:
            both, *past = self._step.run(None, dict(zip(self._inputs(), (x, cond, *past), strict=True)))
            t = np.float32(ask.guidance_scale * step.scale / max(len(plan.schedule) - 1, 1))
            guided = (1 + t) * both[:images] - t * both[images:]
            assert step.sampling is not None
            forced = None if ask.tokens is None else ask.tokens[step.order]
            tokens.append(
                drawn(guided / np.float32(ask.temperature), step.sampling.top_k, ask.top_p, random).astype(np.int32)
                if forced is None
                else forced
            )
            code_sum, x = self._codes.run(None, self._codes_of(step, tokens[-1], code_sum))
            kept += [guided] if logits else []
            seconds[f"step_{step.order:02d}"] = time.perf_counter() - mark
            mark = time.perf_counter()
        pictures: Floats = self._decode.run(None, {"code_sum": code_sum})[0].transpose(0, 2, 3, 1)
        seconds["decode"] = time.perf_counter() - mark
        return Run(tuple(tokens), pictures, seconds, time.perf_counter() - start, tuple(kept))

    def _inputs(self) -> list[str]:
        return ["x", "cond", *_names(self.plan.model().depth, "past")]

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
