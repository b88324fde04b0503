"""Infinity's golden cases, plain and with FastVAR, as a plan over our models."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from support.golden import GOLDEN, TOLERANCE, draw, draw_weights
from torch import Tensor

from nextscale.export.eager import Eager, Request
from nextscale.export.models.bsq import BSQVAE
from nextscale.export.models.infinity import Infinity
from nextscale.plan.families.infinity import INFINITY_SAMPLING, INFINITY_TOKENIZER, infinity_model, infinity_plan
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.types import Grid, Plan, Text

TEXT_TOKENS = 12  # three more than the recorded prompt has


@dataclass(frozen=True)
class InfinityCase:
    """A recorded case: its description, its arrays, the plan that it is, its drawn weights and prompt (9, Ct5)."""

    info: dict[str, Any]
    trace: dict[str, np.ndarray[Any, Any]]
    plan: Plan
    state: dict[str, dict[str, Tensor]]
    text: np.ndarray[Any, Any]

    @property
    def tolerance(self) -> float:
        return TOLERANCE * max(1.0, *map(float, self.info["checks"]["logit_std"].values()))

    def eager(self, rope_grid: Grid | None = None) -> Eager:
        """Freshly loaded models; another rotary grid is a mistake to be noticed."""
        model = self.plan.model()
        var = Infinity(replace(model, rope_grid=rope_grid or model.rope_grid), self.plan.schedule)
        vae = BSQVAE(self.plan.tokenizer, len(self.plan.schedule))
        var.load_state_dict(self.state["infinity:"])
        vae.load_state_dict(self.state["vae:"])
        return Eager(self.plan, var.requires_grad_(False), vae.requires_grad_(False))

    def request(self) -> Request:
        """The recorded call, its bits forced."""
        sampling = self.info["sampling"]
        return Request(
            [(self.text, len(self.text))],
            guidance_scale=sampling["cfg"],
            temperature=sampling["tau"],
            top_p=sampling["top_p"],
            tokens={step.order: torch.from_numpy(self.trace[f"bits_{step.order}"]) for step in self.plan.steps},
        )


def load_infinity(name: str) -> InfinityCase:
    """The case of that name."""
    info = json.loads((GOLDEN / name / "case.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / name / "trace.npz") as arrays:
        trace = dict(arrays)
    m, v, text = info["model"], info["vae"], info["conditioning"]["text"]
    size = (m["depth"], m["embed_dim"], m["num_heads"], m["block_chunks"], m["d_vae"])
    model = infinity_model(*size, text=Text(TEXT_TOKENS, m["text_channels"]), ffn_width=m["ffn_hidden"])
    tokenizer = replace(INFINITY_TOKENIZER, channels=v["base_ch"], multipliers=tuple(v["ch_mult"]))
    schedule = tuple((h, w) for h, w in info["schedule"])
    plan = infinity_plan(name, model, tokenizer, schedule, replace(INFINITY_SAMPLING, top_k=info["sampling"]["top_k"]))
    weights = info["weights"]
    prompt = draw(weights["seed"], text["name"], text["shape"], text["mean"], text["std"]).numpy()
    return InfinityCase(info, trace, _pruned(plan, info["fastvar"]), draw_weights(weights), prompt)


def _pruned(plan: Plan, fastvar: dict[str, Any] | None) -> Plan:
    """The sheet's section 4.2, matched by scale instead of by width."""
    if fastvar is None:
        return plan
    sides = fastvar["pruned_sides"]
    ratios = {scale: sides[str(w)] for scale, (_, w) in enumerate(plan.schedule) if str(w) in sides}
    return FastVAR(ratios, fastvar["cache_step"][0], (fastvar["layers"][0], fastvar["layers"][-1]))(plan)
