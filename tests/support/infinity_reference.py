"""A test-only Infinity forward, so that FastVAR's recorded Infinity run can be replayed through our pruning.

The transformer is written from the fact sheet's section 2, float32, for one image and forced bits. What prunes it is
ours: the plan with its FastVAR method says what is kept and cached, ``run_sub_layer`` selects and restores.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from support.golden import GOLDEN, TOLERANCE, draw, draw_weights
from torch import Tensor
from torch.nn import functional as F

from nextscale.export.models.pruning import kept_index, run_sub_layer, token_scores
from nextscale.export.models.resize import Resize
from nextscale.export.models.sampling import guided
from nextscale.plan.chain import next_scale_plan
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.types import Grid, Guidance, Model, Plan, Sampling, Step, Tokenizer

EPS = 1e-6


@dataclass(frozen=True)
class Recorded:
    """A recorded case: its description, its arrays, its drawn weights and the prompt's features (9, Ct5)."""

    info: dict[str, Any]
    trace: dict[str, np.ndarray[Any, Any]]
    state: dict[str, Tensor]
    text: Tensor

    @property
    def tolerance(self) -> float:
        return TOLERANCE * max(1.0, *map(float, self.info["checks"]["logit_std"].values()))


def load(name: str) -> Recorded:
    """The case of that name; only the transformer's weights are drawn."""
    info = json.loads((GOLDEN / name / "case.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / name / "trace.npz") as arrays:
        trace = dict(arrays)
    weights = info["weights"]
    state = draw_weights({**weights, "keys": {"infinity:": weights["keys"]["infinity:"]}})["infinity:"]
    text = info["conditioning"]["text"]
    return Recorded(info, trace, state, draw(weights["seed"], text["name"], text["shape"], text["mean"], text["std"]))


def plan_of(case: Recorded) -> Plan:
    """The recorded schedule with FastVAR as the sheet's section 4.2 has it, matched by scale instead of by width."""
    m, fastvar = case.info["model"], case.info["fastvar"]
    model = Model(
        family="infinity",
        depth=m["depth"],
        width=m["embed_dim"],
        heads=m["num_heads"],
        head_dim=m["head_dim"],
        ffn_width=m["ffn_hidden"],
        vocabulary=2,
        code_channels=m["d_vae"],
        sub_layers=tuple(fastvar["sublayers"]),
        shared_adaln=True,
        context_tokens=len(case.text),
    )
    tokenizer = Tokenizer(32, (1, 2, 4, 4, 4), 3, m["codebook_dim"], 2, stride=16, phi=0)
    schedule: tuple[Grid, ...] = tuple((h, w) for h, w in case.info["schedule"])
    same = (((0.0, 1.0), (1.0, -1.0)),)  # cfg * conditional + (1 - cfg) * unconditional
    guidance = Guidance(("conditional", "unconditional"), same * len(schedule))
    full = next_scale_plan(case.info["case"], model, tokenizer, schedule, Sampling(0), guidance=guidance)
    ratios = {
        scale: fastvar["pruned_sides"][str(w)]
        for scale, (_, w) in enumerate(schedule)
        if str(w) in fastvar["pruned_sides"]
    }
    return FastVAR(ratios, fastvar["cache_step"][0], (fastvar["layers"][0], fastvar["layers"][-1]))(full)


@dataclass(frozen=True)
class Done:
    """A finished step: guided logits (1, n, 2 * Z), the code sum (1, Z, S, S), the next map, what was selected."""

    step: Step
    logits: Tensor
    code_sum: Tensor
    next_map: Tensor | None
    kept: dict[str, tuple[Tensor, Tensor]]  # "<layer>_<sub-layer>": scores (2, n), index (2, kept)


@dataclass
class Infinity:
    """The recorded model under recorded bits. Rows are the prompt, then the unconditional one."""

    case: Recorded
    plan: Plan
    tapes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # keys and values (2, T, H, hd)
    caches: dict[str, Tensor] = field(default_factory=dict)
    resize: Resize = field(default_factory=Resize)

    def weight(self, key: str) -> Tensor:
        return self.case.state[key]

    def linear(self, x: Tensor, name: str, bias: Tensor | None = None) -> Tensor:
        own = self.case.state.get(f"{name}.bias") if bias is None else bias
        return F.linear(x, self.weight(f"{name}.weight"), own)

    def keys_values(self, name: str, context: Tensor) -> tuple[Tensor, Tensor]:
        """Text as keys and values (2, T, C) each; the keys' bias is zero."""
        v_bias = self.weight(f"{name}.v_bias")
        k, v = self.linear(context, f"{name}.mat_kv", torch.cat((torch.zeros_like(v_bias), v_bias))).chunk(2, dim=-1)
        return k, v

    def conditioning(self) -> tuple[Tensor, Tensor]:
        """Start token and adaLN condition (2, C), and what blocks cross-attend to, (2, T, C)."""
        text = torch.stack((self.case.text, self.weight("cfg_uncond")[: len(self.case.text)]))
        text = text * torch.rsqrt(text.square().mean(-1, keepdim=True) + EPS) * self.weight("text_norm.weight")
        query = self.weight("text_proj_for_sos.ca.mat_q").expand(2, -1, -1).unsqueeze(1)  # (2, 1, heads, C / heads)
        k, v = (t.unflatten(-1, query.shape[2:]) for t in self.keys_values("text_proj_for_sos.ca", text))
        cond = self.linear(attend(query, k, v, query.shape[-1] ** -0.5), "text_proj_for_sos.ca.proj")[:, 0]
        hidden = F.gelu(self.linear(text, "text_proj_for_ca.0"), approximate="tanh")
        return cond, self.linear(hidden, "text_proj_for_ca.2")

    def run(self) -> Iterator[Done]:
        """Step by step, the recorded bits forced."""
        cond, context = self.conditioning()
        shared = self.linear(F.silu(cond), "shared_ada_lin.1").unflatten(-1, (6, -1))  # (2, 6, C)
        x, code_sum = (cond + self.weight("pos_start")[0])[:, None], torch.zeros(())
        for step in self.plan.steps:
            x = x + self.weight("lvl_embed.weight")[step.scale]
            kept: dict[str, tuple[Tensor, Tensor]] = {}
            for layer in range(len(step.layers)):
                x = self.block(x, step, layer, shared, context, kept)
            logits = self.logits(x, cond, step)
            code_sum = code_sum + self.codes(step)
            next_map = None
            if step.next_input.grid:
                next_map = resized(code_sum, step.next_input.grid)
                tokens = self.linear(next_map.flatten(2).transpose(1, 2), "word_embed")
                x = tokens.expand(2, -1, -1)
            yield Done(step, logits, code_sum, next_map, kept)

    def codes(self, step: Step) -> Tensor:
        """The recorded bits as codes +-1 / sqrt(d), at the size of the code sum: (1, Z, S, S)."""
        bits = torch.from_numpy(self.case.trace[f"bits_{step.order}"])  # (1, n, Z)
        codes = (2.0 * bits - 1) / math.sqrt(bits.shape[-1])
        return resized(codes.transpose(1, 2).unflatten(2, step.grid), self.plan.final_grid)

    def logits(self, x: Tensor, cond: Tensor, step: Step) -> Tensor:
        """Head, temperature and guidance: (1, n, 2 * Z)."""
        scale, shift = self.linear(F.silu(cond), "head_nm.ada_lin.1").unflatten(-1, (2, 1, -1)).unbind(1)
        rows = self.linear(layer_norm(x) * (1 + scale) + shift, "head") / self.case.info["sampling"]["tau"]
        cfg = self.case.info["sampling"]["cfg"]
        return guided(rows, torch.tensor([[c + s * cfg for c, s in self.plan.guidance.weights[step.scale]]]))

    def block(
        self, x: Tensor, step: Step, index: int, shared: Tensor, context: Tensor, kept: dict[str, tuple[Tensor, Tensor]]
    ) -> Tensor:
        """One block; its three sub-layers go through our pruning, as the plan has them in this step."""
        per_chunk = self.case.info["model"]["blocks_per_chunk"]
        name, layer = f"block_chunks.{index // per_chunk}.module.{index % per_chunk}", step.layers[index]
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (shared + self.weight(f"{name}.ada_gss")[0]).split(1, dim=1)
        angles = rotations(step.grid, x.shape[-1] // self.heads, self.case.info["model"]["rope_reference_hw"])
        at: Tensor | None = None

        def sa(tokens: Tensor) -> Tensor:
            y = layer_norm(tokens) * (1 + scale1) + shift1
            out = self.self_attention(y, f"{name}.sa", index, angles[None] if at is None else angles[at])
            return torch.mul(gamma1, out)

        def ca(tokens: Tensor) -> Tensor:
            affine = self.weight(f"{name}.ca_norm.weight"), self.weight(f"{name}.ca_norm.bias")
            return self.cross_attention(
                F.layer_norm(tokens, tokens.shape[-1:], *affine, eps=EPS), f"{name}.ca", context
            )

        def ffn(tokens: Tensor) -> Tensor:
            y = layer_norm(tokens) * (1 + scale2) + shift2
            hidden = F.gelu(self.linear(y, f"{name}.ffn.fc1"), approximate="tanh")
            return torch.mul(gamma2, self.linear(hidden, f"{name}.ffn.fc2"))

        for sub_name, compute in (("sa", sa), ("ca", ca), ("ffn", ffn)):
            sub = layer.sub_layer(sub_name)
            cache, cache_grid, at = None, None, None
            if sub.kept is not None and sub.cache:
                cache, cache_grid = self.caches[sub.cache], self.plan.cache(sub.cache).grid
                at = kept_index(x, sub.kept)
                kept[f"{index}_{sub_name}"] = (token_scores(x), at)
            x, full = run_sub_layer(x, sub, compute, step.grid, self.resize, cache, cache_grid)
            if full is not None and sub.cache:
                self.caches[sub.cache] = full
        return x

    @property
    def heads(self) -> int:
        return int(self.case.info["model"]["num_heads"])

    def self_attention(self, y: Tensor, name: str, layer: int, angles: Tensor) -> Tensor:
        """Cosine attention over the tape and this step's computed tokens, which it appends, rotated: (2, m, C)."""
        v_bias = self.weight(f"{name}.v_bias")
        bias = torch.cat((self.weight(f"{name}.q_bias"), torch.zeros_like(v_bias), v_bias))
        q, k, v = self.linear(y, f"{name}.mat_qkv", bias).unflatten(-1, (3, self.heads, -1)).unbind(2)
        scale = self.weight(f"{name}.scale_mul_1H11").clamp_max(math.log(100)).exp().reshape(1, 1, -1, 1)
        q = rotated(F.normalize(q, dim=-1, eps=1e-12) * scale, angles)
        k = rotated(F.normalize(k, dim=-1, eps=1e-12), angles)
        if layer in self.tapes:
            k, v = (torch.cat((old, new), dim=1) for old, new in zip(self.tapes[layer], (k, v), strict=True))
        self.tapes[layer] = (k, v)
        return self.linear(attend(q, k, v, 1.0), f"{name}.proj")

    def cross_attention(self, y: Tensor, name: str, context: Tensor) -> Tensor:
        """Attention to the row's own text, neither normalised nor rotated: (2, m, C)."""
        q, k, v = (
            t.unflatten(-1, (self.heads, -1))
            for t in (self.linear(y, f"{name}.mat_q"), *self.keys_values(name, context))
        )
        return self.linear(attend(q, k, v, q.shape[-1] ** -0.5), f"{name}.proj")


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without affine."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def resized(maps: Tensor, grid: Grid) -> Tensor:
    """Bilinear, not antialiased, both up and down: trilinear of one frame."""
    return F.interpolate(maps, grid, mode="bilinear") if tuple(maps.shape[2:]) != grid else maps


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """(R, m, H, hd) over (R, T, H, hd): (R, m, H * hd)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)


def rotations(grid: Grid, head_dim: int, reference: list[int]) -> Tensor:
    """Angles (n, hd / 2) of a grid's tokens, by their place on the reference grid: y first, then x."""
    half = head_dim // 2
    inverse = 10000.0 ** (-torch.arange(0, half, 2) / half)  # (half / 2,)
    y, x = (torch.round(torch.arange(n) * (full / n)) for n, full in zip(grid, reference, strict=True))
    y, x = y.repeat_interleave(grid[1]), x.repeat(grid[0])  # (n,) each, raster order
    return torch.cat((y[:, None] * inverse, x[:, None] * inverse), dim=1)


def rotated(t: Tensor, angles: Tensor) -> Tensor:
    """(R, m, H, hd) by angles (R or 1, m, hd / 2), on interleaved pairs."""
    a, b = t.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos().unsqueeze(2), angles.sin().unsqueeze(2)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
