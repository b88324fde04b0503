"""The eager Infinity: published keys and sizes, its text, one pass or many, one picture or three, folded or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.drawn_infinity import (
    MODEL,
    OBLONG,
    PATCHED,
    SQUARE,
    TEXT,
    TOKENIZER,
    eager_of,
    infinity_chain,
    prompt,
)
from torch import Tensor

from nextscale.export.components import compute_in
from nextscale.export.eager import Eager, EagerStep, Request, State
from nextscale.export.models.contract import Rotation
from nextscale.export.models.grid_rope import grid_rotation, turn_pairs
from nextscale.export.models.infinity import Infinity
from nextscale.export.models.step import Draw
from nextscale.plan.conditioning import MASK_LANES, conditions, longest
from nextscale.plan.errors import PlanError
from nextscale.plan.methods.fastvar import FastVAR
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Grid, Plan, Text

TWO = [prompt(1, 4), prompt(2, 6)]
KINDS = {"square": (SQUARE, TOKENIZER), "oblong": (OBLONG, TOKENIZER), "patches": (OBLONG, PATCHED)}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def chain(request: pytest.FixtureRequest) -> Plan:
    return infinity_chain(*request.param)


def run(eager: Eager, **request: Any) -> list[EagerStep]:
    return list(eager.stream(Request(**{"subjects": TWO, "guidance_scale": 3.0, "top_p": 0.9, **request})))


def tokens(steps: list[EagerStep]) -> dict[int, Tensor]:
    return {i: step.prediction.tokens for i, step in enumerate(steps)}


def logits(steps: list[EagerStep]) -> Tensor:
    """All scales in one, (B, L, 2 * bits)."""
    return torch.cat([step.prediction.logits for step in steps], dim=1)


def maps(steps: list[EagerStep]) -> Tensor:
    """The input maps of scales 1 and on, (B, L - 1, bits)."""
    return torch.cat([m for step in steps if (m := step.prediction.next_map) is not None], dim=1)


def test_one_pass_of_teacher_forcing_is_the_chain(chain: Plan) -> None:
    """Step by step over tapes without a mask, and all tokens at once under the block-causal mask, are one model."""
    eager = eager_of(chain)
    steps = run(eager, guidance_scale=1.0)  # weights (1, 0): the conditional row's own logits
    assert isinstance(eager.var, Infinity)
    at_once = eager.var(eager.given(Request(TWO)), maps(steps))
    assert float(at_once.std()) > 1
    torch.testing.assert_close(at_once, logits(steps), rtol=1e-4, atol=1e-4)


def test_teacher_forcing_sees_no_later_scale() -> None:
    eager = eager_of(infinity_chain())
    texts, before = eager.given(Request(TWO)), maps(run(eager))
    after = before.clone()
    after[:, 4:] += 1  # the input of scale 2 and on
    first, second = (eager.var(texts, m) for m in (before, after))
    assert torch.equal(first[:, :5], second[:, :5])
    assert (first[:, 5:] != second[:, 5:]).any(dim=-1).all()


def test_teacher_forcing_has_gradients_for_every_weight() -> None:
    """All but the learned text, which training puts in the place of prompts itself."""
    eager = eager_of(infinity_chain())
    texts, inputs = eager.given(Request(TWO)), maps(run(eager)).clone()
    eager.var.requires_grad_(True)
    eager.var({k: v.clone() for k, v in texts.items()}, inputs).square().mean().backward()
    without = {name for name, p in eager.var.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"cfg_uncond"}


def test_begin_makes_what_the_plan_lists(chain: Plan) -> None:
    eager, model = eager_of(chain), chain.model()
    made = eager.begin(eager.given(Request(TWO)))
    listed = {c.name: (4, *longest(c.shape, model)) for c in conditions(model)}
    assert {name: tuple(t.shape) for name, t in made.items()} == listed
    assert all(t.dtype == torch.float32 for t in made.values())


def test_folding_changes_nothing(chain: Plan) -> None:
    before, eager = run(eager_of(chain)), eager_of(chain)
    state = set(eager.var.state_dict())
    eager.var.fold()
    eager.vae.fold()
    assert torch.equal(logits(before), logits(run(eager)))
    assert set(eager.var.state_dict()) == state
    names = {name.rpartition(".")[2].rstrip("_0123456789") for name, _ in eager.var.named_buffers()}
    assert set(Infinity.DERIVED) <= names


def test_folded_tensors_stand_in_for_their_parameters() -> None:
    eager = eager_of(infinity_chain())
    before = run(eager)
    eager.var.fold()
    behind = {source for derived in Infinity.DERIVED.values() for source in derived.sources}
    spoiled = [p for name, p in eager.var.named_parameters() if name.endswith(tuple(behind))]
    assert len(spoiled) > 4 * 4
    for parameter in spoiled:  # some derived tensors are views of them
        parameter.data = torch.full_like(parameter, torch.nan)
    assert torch.equal(logits(before), logits(run(eager)))


def rows_of(eager: Eager, subjects: list[Any], negative: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The start tokens (R, C) and all conditions of prompts."""
    made = eager.begin(eager.given(Request(subjects, negative=negative)))
    return made["sos"], made


def seen(made: dict[str, Tensor]) -> list[int]:
    """How many tokens of its text each row sees: those that the keys' lanes do not hide, in every block."""
    counts = [(made[f"text.k.{i:02d}"][..., -MASK_LANES:] == 0).all(dim=(2, 3)).sum(dim=1).tolist() for i in (0, 1)]
    assert counts[0] == counts[1]
    return list(counts[0])


def test_the_second_row_is_the_negative_prompt() -> None:
    eager = eager_of(infinity_chain())
    _, both = rows_of(eager, TWO, [prompt(3, 2), prompt(4, 5)])
    _, alone = rows_of(eager, [prompt(3, 2), prompt(4, 5)])
    assert seen(both) == [4, 6, 2, 5]
    for name, tensor in both.items():
        torch.testing.assert_close(tensor[2:], alone[name][:2])


def test_without_a_negative_prompt_it_is_the_learned_text_at_the_prompt_s_length() -> None:
    eager = eager_of(infinity_chain())
    learned = eager.var.get_parameter("cfg_uncond")[: TEXT.tokens].numpy()
    _, mixed = rows_of(eager, TWO, [None, prompt(4, 5)])
    _, alone = rows_of(eager, [(learned, 4), prompt(4, 5)])
    assert seen(mixed) == [4, 6, 4, 5]
    for name, tensor in mixed.items():
        torch.testing.assert_close(tensor[2:], alone[name][:2])


def test_what_stands_behind_a_text_is_not_looked_at() -> None:
    """Not even where it is no number, which no mask of attention would forgive."""
    eager = eager_of(infinity_chain())
    given_ = eager.given(Request(TWO, negative=prompt(3, 2)))
    before = eager.var.begin(given_, 2)
    for name in ("text", "negative"):
        behind = torch.arange(TEXT.tokens) >= given_[f"{name}_length"][:, None]
        given_[name][behind] = torch.nan
    for name, tensor in eager.var.begin(given_, 2).items():
        assert torch.equal(tensor, before[name])


def test_text_is_pooled_by_one_query_over_its_own_tokens() -> None:
    """The start token by hand, the sheet's section 2.3."""
    eager = eager_of(infinity_chain())
    state: dict[str, Tensor] = dict(eager.var.state_dict())
    rows, length = prompt(1, 4)
    text = torch.from_numpy(rows[:length]).double()
    text = text / (text.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state["text_norm.weight"].double()
    name = "text_proj_for_sos.ca"
    k, v = (text @ state[f"{name}.mat_kv.weight"].double().T).split(64, dim=-1)
    v = v + state[f"{name}.v_bias"].double()
    weights = (k @ state[f"{name}.mat_q"].double().flatten() / 64**0.5).softmax(dim=0)  # one head: 20 < 128
    wanted = (weights @ v) @ state[f"{name}.proj.weight"].double().T + state[f"{name}.proj.bias"].double()
    torch.testing.assert_close(rows_of(eager, TWO)[0][0].double(), wanted, rtol=1e-5, atol=1e-5)


def test_guidance_does_nothing_where_the_negative_prompt_is_the_prompt() -> None:
    eager = eager_of(infinity_chain())
    alike = {"subjects": [TWO[0]], "negative": [TWO[0]]}
    free = run(eager, **alike, guidance_scale=1.0)
    strong = run(eager, **alike, guidance_scale=7.0, tokens=tokens(free))
    torch.testing.assert_close(logits(free), logits(strong), rtol=1e-3, atol=1e-3)
    apart = run(eager, subjects=[TWO[0]], negative=[TWO[1]], guidance_scale=7.0, tokens=tokens(free))
    assert float((logits(apart) - logits(free)).abs().max()) > 1


def test_the_temperature_divides_and_guidance_is_constant() -> None:
    eager = eager_of(infinity_chain())
    base = run(eager, guidance_scale=0.0)  # the second row's own
    one, three = (run(eager, guidance_scale=g, tokens=tokens(base)) for g in (1.0, 3.0))
    torch.testing.assert_close(logits(three), 3 * logits(one) - 2 * logits(base), rtol=1e-3, atol=1e-3)
    cold = run(eager, guidance_scale=3.0, temperature=0.5, tokens=tokens(base))
    torch.testing.assert_close(logits(cold), logits(three) / 0.5, rtol=1e-4, atol=1e-3)


def one_picture(eager: Eager, request: Request, picture: int) -> list[EagerStep]:
    """The run of one picture of a call by itself, with its own noise."""
    given_ = {name: t[picture : picture + 1] for name, t in eager.given(request).items()}
    cond, state, steps = eager.begin(given_), State(), []
    for step in eager.plan.steps:
        drawn = (None if t is None else t[picture : picture + 1] for t in eager.draw(step, request))
        with torch.inference_mode():
            steps.append(EagerStep(step, eager.run_step(step, cond, state, Draw(*drawn)), 0.0))  # type: ignore[arg-type]
    return steps


@pytest.mark.parametrize("pruned", [False, True])
def test_a_picture_does_not_depend_on_its_batch(chain: Plan, pruned: bool) -> None:
    """Nor on the lengths of other prompts, nor, where tokens are pruned, on which tokens others keep."""
    plan = FastVAR({-2: 0.4, -1: 0.6}, cache_scale=1, layers=(1, -1))(chain) if pruned else chain
    eager = eager_of(plan)
    request = Request([*TWO, prompt(5, 1)], 5, 3.0, top_p=0.9, negative=[None, prompt(3, 2), None])
    batch = list(eager.stream(request))
    for picture in range(3):
        alone = one_picture(eager, request, picture)
        torch.testing.assert_close(logits(alone)[0], logits(batch)[picture], rtol=1e-3, atol=1e-4)
        for a, b in zip(alone, batch, strict=True):
            assert torch.equal(a.prediction.tokens[0], b.prediction.tokens[picture])


def test_bits_are_drawn_one_by_one_and_may_be_forced_one_by_one() -> None:
    eager = eager_of(infinity_chain())
    free = run(eager, top_p=1.0)
    forced = {i: torch.where(torch.rand(t.shape) < 0.5, t, -1) for i, t in tokens(free).items()}
    again = run(eager, top_p=1.0, tokens=forced)
    for one, two in zip(free, again, strict=True):
        assert one.prediction.tokens.shape == (2, one.step.tokens_out, 8)
        assert torch.equal(one.prediction.tokens, two.prediction.tokens)
    assert 0.2 < torch.cat([t.flatten() for t in tokens(free).values()]).float().mean() < 0.8


def test_pictures_have_the_plan_s_size(chain: Plan) -> None:
    pictures, _ = eager_of(chain).generate(Request(TWO))
    assert pictures.shape == (2, *chain.image_size, 3)
    assert 0 < pictures.std() < 0.5


def test_half_precision_is_for_the_blocks_matrices_alone() -> None:
    eager = eager_of(infinity_chain())
    before = run(eager, guidance_scale=1.0)
    compute_in(eager.var, eager.vae, torch.bfloat16)
    half = {name for name, p in eager.var.named_parameters() if p.dtype == torch.bfloat16}
    blocks = {n for n, _ in eager.var.named_parameters() if ".module." in n}
    assert half == {
        n for n in blocks if not n.endswith(("ada_gss", "scale_mul_1H11", "ca_norm.weight", "ca_norm.bias"))
    }
    made = eager.begin(eager.given(Request(TWO)))
    assert {made[f"text.{part}.03"].dtype for part in "kv"} == {torch.bfloat16}
    after = run(eager, guidance_scale=1.0, tokens=tokens(before))
    assert all(step.prediction.logits.dtype == torch.float32 for step in after)
    assert 0 < float((logits(after) - logits(before)).std()) < 0.05 * float(logits(before).std())


def test_places_count_on_the_trained_grid_whatever_runs() -> None:
    small = Infinity(replace(MODEL, text=TEXT), schedule("infinity-0.06m"))
    assert small.rope_grid == (64, 64)
    last = len(small.schedule) - 1
    assert torch.equal(small.derived(f"rope_cos_{last:02d}"), grid_rotation((16, 16), (64, 64), 16).cos)
    assert Infinity(MODEL, schedule("infinity-0.25m-0.75")).rope_grid == (54, 72)


def test_rotated_rows_of_kept_tokens_are_those_of_all(chain: Plan) -> None:
    """What a pruned step leaves on tapes is what a full one leaves at the same places."""
    rotation = grid_rotation((3, 4), (6, 8), 16)
    q = torch.randn(2, 12, 4, 16, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([[0, 5, 7], [1, 2, 11]])
    kept = q.gather(1, index[..., None, None].expand(-1, -1, 4, 16))
    all_turned = turn_pairs(q, rotation).gather(1, index[..., None, None].expand(-1, -1, 4, 16))
    assert torch.equal(turn_pairs(kept, Rotation(rotation.cos[index], rotation.sin[index])), all_turned)


@pytest.mark.parametrize(
    ("changed", "schedule_", "said"),
    [
        ({"text": None}, SQUARE, "cross-attended"),
        ({"text": Text(6, 20, "prefix")}, SQUARE, "cross-attended"),
        ({"rope": "none"}, SQUARE, "rope 'none'"),
        ({"bits": 0}, SQUARE, "0 bits"),
        ({"chunks": 3}, SQUARE, "3 chunks of 4 blocks"),
        ({"chunks": 0}, SQUARE, "0 chunks"),
        ({"text": Text(513, 20)}, SQUARE, "found 4, 513"),
        ({}, tuple((i, i) for i in range(1, 17)), "15 scales"),
    ],
)
def test_other_models_are_refused(changed: dict[str, Any], schedule_: tuple[Grid, ...], said: str) -> None:
    with pytest.raises(PlanError, match="an Infinity has") as caught:
        Infinity(replace(MODEL, **changed), schedule_)
    assert said in str(caught.value)
