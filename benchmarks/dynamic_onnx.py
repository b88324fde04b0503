"""VAR by hand on ONNX Runtime: what one does without this project. One step graph of dynamic lengths for all steps.

Upstream's model through ``torch.onnx.export`` (upstream_var.py): tokens and past rows are dynamic axes, keys and values
go in and come out longer by ``Concat``. A graph of the code sum and the decoder stand beside it;
dynamic_session.py runs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_session import TABLES, names
from torch import Tensor, nn
from upstream_vae import UpstreamTokenizer
from upstream_var import UpstreamVAR

from nextscale.export.trace import quiet


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
    any_length = torch.export.Dim.DYNAMIC
    x, cond, layers = torch.zeros(2, 4, sizes.width), torch.zeros(2, sizes.width), range(sizes.depth)
    keys, values = ([torch.zeros(2, sizes.heads, 3, sizes.head_dim) for _ in layers] for _ in range(2))
    past = [{0: any_length, 2: any_length} for _ in layers]
    _export(
        StepGraph(model),
        (x, cond, keys, values),
        ({0: any_length, 1: any_length}, {0: any_length}, past, past),
        ["x", "cond", *names(sizes.depth, "past")],
        ["logits", *names(sizes.depth, "longer")],
        part / "step.onnx",
    )
    z, (h, w) = plan.tokenizer.code_channels, plan.code_grid
    sums = torch.zeros(2, z, h, w)
    given = [torch.zeros(2, 2, 3, dtype=torch.int64), sums, torch.zeros(h, 2), torch.zeros(w, 3)]
    given += [torch.zeros(4, h), torch.zeros(5, w), torch.zeros(1, dtype=torch.int64), torch.zeros(20, sizes.width)]
    inputs = ["tokens", "code_sum", "up_h", "up_w", "down_h", "down_w", "phi", "position"]
    axes: tuple[tuple[int, ...], ...] = ((0, 1, 2), (0,), (1,), (1,), (0,), (0,), (), (0,))
    free = tuple(dict.fromkeys(each, any_length) for each in axes)
    _export(CodesGraph(model), tuple(given), free, inputs, ["code_sum.out", "x"], part / "codes.onnx")
    decoder: UpstreamTokenizer = model.tokenizer[0]
    _export(decoder, (sums,), ({0: any_length},), ["code_sum"], ["pictures"], part / "decode.onnx")
    start = model.pos_start[0] + model.positions()[0, :1]
    np.savez(part / TABLES, classes=model.class_emb.weight, start=start, positions=model.positions()[0])
    return part.rename(folder)


def _export(
    module: nn.Module, given: tuple[Any, ...], free: Any, inputs: list[str], outputs: list[str], to: Path
) -> None:
    with torch.no_grad(), quiet():
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
