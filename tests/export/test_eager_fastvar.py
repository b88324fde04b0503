"""FastVAR in the whole eager chain: against the full model, and against a slow loop written from the sheet."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from support.drawn import MODEL, OBLONG, SQUARE, TOKENIZER, drawn_eager, full_plan
from torch import Tensor
from torch.nn import functional as F

from nextscale.export.eager import Eager, EagerStep, Request, State
from nextscale.export.models.var import VAR
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.recipes import var_model
from nextscale.plan.types import Grid, Model

DEEP = var_model(3, 64, heads=4, classes=5, vocabulary=48)
LAST_TWO = FastVAR({-2: 0.4, -1: 0.6}, cache_scale=-3, layers=(1, 2))
REQUEST = Request([1, 5], seed=3, guidance_scale=2.0, top_p=0.9)


def replay(steps: list[EagerStep]) -> Request:
    """The same request with every token forced."""
    tokens = {i: step.prediction.tokens for i, step in enumerate(steps)}
    return Request(REQUEST.subjects, REQUEST.seed, REQUEST.guidance_scale, REQUEST.top_p, tokens=tokens)


def run(method: FastVAR | None, schedule: tuple[Grid, ...] = SQUARE, request: Request = REQUEST) -> list[EagerStep]:
    plan = full_plan(DEEP, schedule)
    return list(drawn_eager(method(plan) if method else plan).stream(request))


@pytest.mark.parametrize("schedule", [SQUARE, OBLONG], ids=["square", "oblong"])
@pytest.mark.parametrize("ratio", [0.1, 0.4, 0.5, 0.75, 0.99])
def test_kept_is_what_the_truncated_ratio_leaves(ratio: float, schedule: tuple[Grid, ...]) -> None:
    plan = FastVAR({-1: ratio}, cache_scale=1)(full_plan(DEEP, schedule))
    n = schedule[-1][0] * schedule[-1][1]
    assert {sub.kept for layer in plan.steps[-1].layers for sub in layer.sub_layers} == {n - int(n * ratio)}


@pytest.mark.parametrize("ratio", [0.0, 1 / 26])
def test_a_ratio_that_prunes_nothing_is_the_full_model_bit_for_bit(ratio: float) -> None:
    """One 26th of 25 tokens is none."""
    for full, pruned in zip(run(None), run(FastVAR({-1: ratio}, cache_scale=-2)), strict=True):
        assert torch.equal(full.prediction.logits, pruned.prediction.logits)
        assert torch.equal(full.prediction.code_sum, pruned.prediction.code_sum)


@pytest.mark.parametrize("schedule", [SQUARE, OBLONG], ids=["square", "oblong"])
def test_steps_before_the_first_pruned_one_are_bit_identical(schedule: tuple[Grid, ...]) -> None:
    full = run(None, schedule)
    pruned = run(LAST_TWO, schedule, replay(full))
    for i in (0, 1):
        assert torch.equal(full[i].prediction.logits, pruned[i].prediction.logits)
        assert torch.equal(full[i].prediction.code_sum, pruned[i].prediction.code_sum)
    for i in (2, 3):
        assert not torch.allclose(full[i].prediction.logits, pruned[i].prediction.logits, atol=1e-3)


def test_a_skipped_scale_leaves_the_others_as_they_are() -> None:
    full = run(None)
    short = run(FastVAR({}, cache_scale=0, skip=(-1,)), request=replay(full[:-1]))
    assert len(short) == len(full) - 1
    for a, b in zip(full, short, strict=False):
        assert torch.equal(a.prediction.code_sum, b.prediction.code_sum)
    assert short[-1].prediction.code_sum.shape == (2, 32, 5, 5)
    assert short[-1].prediction.next_map is None


def states(eager: Eager) -> list[tuple[dict[str, int], dict[str, tuple[int, ...]]]]:
    """After each step: rows of every tape, shape of every restore cache."""
    cond, state, found = eager.begin(eager.given(REQUEST)), State(), []
    for step in eager.plan.steps:
        with torch.inference_mode():
            eager.run_step(step, cond, state, eager.draw(step, REQUEST))
        rows = {name: len(key) for name, (key, value) in state.tapes.items() if len(key) == len(value)}
        found.append((rows, {name: tuple(cache.shape) for name, cache in state.caches.items()}))
    return found


def test_tapes_hold_kept_rows_and_caches_are_written_where_they_are_read() -> None:
    schedule: tuple[Grid, ...] = ((1, 1), (2, 3), (4, 5), (6, 5))  # 1, 6, 20, 30 tokens; 12 of 20 are kept
    eager = drawn_eager(LAST_TWO(full_plan(DEEP, schedule)))
    found = states(eager)
    tapes = [[rows[tape.id] for tape in eager.plan.tapes] for rows, _ in found]
    assert tapes == [[1, 1, 1], [7, 7, 7], [27, 19, 19], [27, 19, 19]]  # the last step leaves nothing
    read = {sub.cache for layer in eager.plan.steps[-1].layers for sub in layer.sub_layers if sub.kept}
    assert len(read) == 4  # two sub-layers of the two layers that prune
    assert [set(caches) for _, caches in found] == [set(), read, read, read]
    assert set(found[-1][1].values()) == {(4, 6, 64)}


def test_nothing_is_left_from_one_call_to_the_next() -> None:
    eager = drawn_eager(LAST_TWO(full_plan(DEEP)))
    first = list(eager.stream(REQUEST))
    list(eager.stream(Request([0], seed=9)))
    second = list(eager.stream(REQUEST))
    assert torch.equal(first[-1].prediction.code_sum, second[-1].prediction.code_sum)


@dataclass
class Row:
    """One guidance row of one picture in the slow loop: what its layers remember."""

    tapes: dict[int, list[tuple[Tensor, Tensor]]]
    caches: dict[tuple[int, str], Tensor]


class SlowLoop:
    """FastVAR from the sheet's section 4.1, one row and one sub-layer at a time; kept tokens in descending order."""

    def __init__(self, var: VAR, schedule: tuple[Grid, ...], method: FastVAR) -> None:
        self.state, self.model, self.schedule = var.state_dict(), var.model, schedule
        self.ratios = {scale % len(schedule): ratio for scale, ratio in method.ratios.items()}
        self.cache_scale = method.cache_scale % len(schedule)
        self.layers = method.layers or (0, self.model.depth - 1)
        self.starts = [sum(h * w for h, w in schedule[:k]) for k in range(len(schedule))]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def logits(self, row: Row, label: int, scale: int, given: Tensor | None) -> Tensor:
        """One row's pass over one scale; ``given`` is its input map (n, Z). Logits (n, V)."""
        cond = self.state["class_emb.weight"][label]
        n = self.schedule[scale][0] * self.schedule[scale][1]
        place = self.state["pos_1LC"][0, self.starts[scale] : self.starts[scale] + n]
        x = place + self.state["lvl_embed.weight"][scale]
        x = x + (cond + self.state["pos_start"][0] if given is None else self.linear(given, "word_embed"))
        for layer in range(self.model.depth):
            groups = self.linear(F.silu(cond), f"blocks.{layer}.ada_lin.1").reshape(6, -1)
            for name, gate, stretch, shift in (("attn", 0, 2, 4), ("ffn", 1, 3, 5)):
                kept = self.kept(x, scale, layer)
                tokens = F.layer_norm(x[kept], x.shape[1:], eps=1e-6) * (1 + groups[stretch]) + groups[shift]
                out = self.attention(tokens, layer, row) if name == "attn" else self.ffn(tokens, layer)
                x = x + self.restored(groups[gate] * out, kept, (layer, name), scale, row)
        stretch, shift = self.linear(F.silu(cond), "head_nm.ada_lin.1").reshape(2, -1)
        return self.linear(F.layer_norm(x, x.shape[1:], eps=1e-6) * (1 + stretch) + shift, "head")

    def kept(self, x: Tensor, scale: int, layer: int) -> Tensor:
        """Indices by descending score; all of them, in order, where nothing is pruned."""
        n = len(x)
        if scale not in self.ratios or not self.layers[0] <= layer <= self.layers[1]:
            return torch.arange(n)
        scores = ((x - x.mean(dim=0)) ** 2).sum(dim=1)
        return scores.argsort(descending=True)[: n - int(n * self.ratios[scale])]

    def restored(self, update: Tensor, kept: Tensor, place: tuple[int, str], scale: int, row: Row) -> Tensor:
        if scale == self.cache_scale:
            row.caches[place] = update
        grid, cache_grid = self.schedule[scale], self.schedule[self.cache_scale]
        if len(kept) == grid[0] * grid[1]:
            return update
        picture = row.caches[place].T.reshape(1, -1, *cache_grid)
        whole = F.adaptive_avg_pool2d(picture, grid)[0].flatten(1).T.clone()
        for i, token in enumerate(kept.tolist()):
            whole[token] = update[i]
        return whole

    def attention(self, y: Tensor, layer: int, row: Row) -> Tensor:
        name, size = f"blocks.{layer}.attn", self.model.head_dim
        zero = torch.zeros_like(self.state[f"{name}.q_bias"])
        bias = torch.cat((self.state[f"{name}.q_bias"], zero, self.state[f"{name}.v_bias"]))
        q, k, v = F.linear(y, self.state[f"{name}.mat_qkv.weight"], bias).chunk(3, dim=-1)
        row.tapes.setdefault(layer, []).append((k, v))
        keys, values = (torch.cat(parts) for parts in zip(*row.tapes[layer], strict=True))
        outs = []
        for head in range(self.model.heads):
            part = slice(head * size, (head + 1) * size)
            factor = math.exp(min(float(self.state[f"{name}.scale_mul_1H11"][0, head]), math.log(100)))
            scores = F.normalize(q[:, part], dim=1) @ F.normalize(keys[:, part], dim=1).T * factor
            outs.append(scores.softmax(dim=1) @ values[:, part])
        return self.linear(torch.cat(outs, dim=1), f"{name}.proj")

    def ffn(self, y: Tensor, layer: int) -> Tensor:
        hidden = F.gelu(self.linear(y, f"blocks.{layer}.ffn.fc1"), approximate="tanh")
        return self.linear(hidden, f"blocks.{layer}.ffn.fc2")


# Two tokens always tie (both are as far from their mean), so nothing prunes a grid of two here.
METHODS = {
    "last two": LAST_TWO,
    "one from an early cache": FastVAR({-1: 0.75}, cache_scale=0),
    "one layer, smaller caches": FastVAR({2: 0.3, 3: 0.9}, cache_scale=1, layers=(1, 1)),
}


@pytest.mark.parametrize("schedule", [SQUARE, OBLONG], ids=["square", "oblong"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_the_chain_is_the_slow_loop(method: FastVAR, schedule: tuple[Grid, ...]) -> None:
    eager = drawn_eager(method(full_plan(DEEP, schedule)))
    steps = list(eager.stream(REQUEST))
    slow = SlowLoop(eager.var, schedule, method)
    for image, label in enumerate(REQUEST.subjects):
        rows = [Row({}, {}), Row({}, {})]
        given: Tensor | None = None
        for scale, done in enumerate(steps):
            conditional, null = (
                slow.logits(row, who, scale, given) for row, who in zip(rows, (label, DEEP.classes), strict=True)
            )
            t = REQUEST.guidance_scale * scale / (len(schedule) - 1)
            wanted = (1 + t) * conditional - t * null
            torch.testing.assert_close(done.prediction.logits[image], wanted, rtol=2e-4, atol=2e-4)
            given = None if done.prediction.next_map is None else done.prediction.next_map[image]


def test_the_more_is_pruned_the_further_logits_move() -> None:
    """Under the same tokens; drawn weights have no quality to keep."""
    full = run(None)
    moved = []
    for ratio in (0.1, 0.5, 0.95):
        pruned = run(FastVAR({-1: ratio}, cache_scale=-2), request=replay(full))
        moved.append(float((pruned[-1].prediction.logits - full[-1].prediction.logits).square().mean()))
    assert 0 < moved[0] < moved[1] < moved[2]


def test_every_model_variant_prunes() -> None:
    for model in (MODEL, Model(**{**vars(MODEL), "shared_adaln": True}), Model(**{**vars(MODEL), "qk_norm": False})):
        plan = FastVAR({-1: 0.5}, cache_scale=-2)(full_plan(model, OBLONG, TOKENIZER))
        logits = list(drawn_eager(plan).stream(REQUEST))[-1].prediction.logits
        assert logits.shape == (2, 28, 48)
        assert logits.isfinite().all()
