"""Golden cases: tiny models whose weights are drawn by a rule, and what the original implementations made of them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.export.models.var import VAR
from nextscale.export.models.vqvae import VQVAE
from nextscale.plan.types import Grid, Model, Tokenizer

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
VAR_CASES = ("var_d2", "var_d3_saln")
TOLERANCE = 1e-4  # times max(1, std of the case's logits), float32: the traces' own README


def draw(seed: int, name: str, shape: list[int], mean: float, std: float | str) -> Tensor:
    """One tensor of the rule, on the CPU; ``fan_in`` is 1 / sqrt(numel of one output row)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:6], "big"))
    scale = float(np.prod(shape[1:])) ** -0.5 if std == "fan_in" else float(std)
    return mean + scale * torch.randn(shape, generator=generator, dtype=torch.float32)


def draw_weights(weights: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Every prefix ('var:', 'vae:') to its state dict of learnable keys."""
    table = [(re.compile(pattern), mean, std) for pattern, mean, std in weights["table"]]

    def one(name: str, shape: list[int]) -> Tensor:
        mean, std = next((m, s) for pattern, m, s in table if pattern.search(name))
        return draw(weights["seed"], name, shape, mean, std)

    return {prefix: {key: one(prefix + key, shape) for key, shape in keys} for prefix, keys in weights["keys"].items()}


@dataclass(frozen=True)
class Case:
    """A case's description, its recorded arrays and its models."""

    info: dict[str, Any]
    trace: dict[str, np.ndarray]
    model: Model
    tokenizer: Tokenizer
    schedule: tuple[Grid, ...]
    state: dict[str, dict[str, Tensor]]

    @property
    def tolerance(self) -> float:
        return TOLERANCE * max(1.0, *self.info["checks"]["logit_std"].values())

    def models(self) -> tuple[VAR, VQVAE]:
        var, vae = VAR(self.model, self.schedule), VQVAE(self.tokenizer, len(self.schedule))
        var.load_state_dict(self.state["var:"])
        missing, unexpected = vae.load_state_dict(self.state["vae:"], strict=False)
        assert not unexpected
        assert all(k.startswith(("encoder.", "quant_conv.")) or k.endswith("ema_vocab_hit_SV") for k in missing)
        return var.eval(), vae.eval()

    def tokens(self) -> dict[int, Tensor]:
        return {i: torch.from_numpy(self.trace[f"ids_{i}"]) for i in range(len(self.schedule))}


def load_case(name: str) -> Case:
    info = json.loads((GOLDEN / name / "case.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / name / "trace.npz") as arrays:
        trace = dict(arrays)
    m, v = info["model"], info["vae"]
    model = Model(
        family="var",
        depth=m["depth"],
        width=m["embed_dim"],
        heads=m["num_heads"],
        head_dim=m["head_dim"],
        ffn_width=round(m["embed_dim"] * m["mlp_ratio"]),
        vocabulary=m["vocab_size"],
        code_channels=v["z_channels"],
        classes=m["num_classes"],
        qk_norm=m["attn_l2_norm"],
        shared_adaln=m["shared_aln"],
    )
    tokenizer = Tokenizer(
        v["ch"], tuple(v["ch_mult"]), v["num_res_blocks_decoder"], v["z_channels"], v["vocab_size"], v["stride"]
    )
    schedule = tuple((h, w) for h, w in info["schedule"])
    return Case(info, trace, model, tokenizer, schedule, draw_weights(info["weights"]))
