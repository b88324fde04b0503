"""The eager Infinity, plain and with FastVAR, under recorded bits against traces of the original implementations."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from support.golden_infinity import InfinityCase, load_infinity
from torch import Tensor
from torch.nn import functional as F

from nextscale.export.eager import Eager, EagerStep, State
from nextscale.export.models import attention, pruning
from nextscale.export.models.resize import Resize
from nextscale.export.models.sampling import filtered, per_draw
from nextscale.plan.types import Grid

PRUNED = 9  # FastVAR's one pruned step here, the last
EARLY = 5  # steps that show a mistake in every block, in little time


@dataclass
class Replay:
    """A finished run; what FastVAR selected: scores (2, n) and kept index (2, m), in order; and what came before it."""

    case: InfinityCase
    eager: Eager
    steps: list[EagerStep]
    selected: list[tuple[Tensor, Tensor]]
    before_last: State
    pictures: np.ndarray[Any, Any]


def run(case: InfinityCase, eager: Eager) -> Replay:
    request, state, steps = case.request(), State(), []
    selected: list[tuple[Tensor, Tensor]] = []
    before_last = state

    def kept_index(x: Tensor, kept: int) -> Tensor:
        index = own(x, kept)
        selected.append((pruning.token_scores(x), index))
        return index

    own = pruning.kept_index
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(pruning, "kept_index", kept_index)
        cond = eager.begin(eager.given(request))
        for step in case.plan.steps:
            before_last = copy.copy(state)
            steps.append(EagerStep(step, eager.run_step(step, cond, state, eager.draw(step, request)), 0.0))
    return Replay(case, eager, steps, selected, before_last, eager.decode(steps[-1].prediction.code_sum))


def finished(name: str) -> Replay:
    case = load_infinity(name)
    return run(case, case.eager())


@pytest.fixture(scope="module")
def plain() -> Replay:
    return finished("infinity_025M")


@pytest.fixture(scope="module")
def fastvar() -> Replay:
    return finished("infinity_fastvar_025M")


@pytest.fixture(params=["plain", "fastvar"])
def replay(request: pytest.FixtureRequest) -> Replay:
    found: Replay = request.getfixturevalue(request.param)
    return found


def error(case: InfinityCase, steps: list[EagerStep]) -> float:
    """The largest difference of guided logits at the recorded places."""
    found = 0.0
    for done in steps:
        order = done.step.order
        got = done.prediction.logits[:, case.trace[f"pos_{order}"]].numpy()
        found = max(found, float(np.abs(got - case.trace[f"logits_{order}"]).max()))
    return found


def stats(channels_first: Tensor) -> np.ndarray[Any, Any]:
    flat = channels_first.flatten(2).double()
    return torch.stack((flat.mean(2), flat.std(2, correction=0)), dim=2).numpy()


def test_drawn_weights_are_the_recorded_ones(replay: Replay) -> None:
    for prefix, recorded in replay.case.info["weights"]["abs_sum"].items():
        total = sum(float(t.double().abs().sum()) for t in replay.case.state[prefix].values())
        assert total == pytest.approx(recorded, rel=1e-6)


def test_logits(replay: Replay) -> None:
    assert error(replay.case, replay.steps) <= replay.case.tolerance


def test_code_sums_and_next_inputs(replay: Replay) -> None:
    case, steps = replay.case, replay.steps
    for i, done in enumerate(steps):
        np.testing.assert_allclose(stats(done.prediction.code_sum), case.trace[f"fhat_stat_{i}"], atol=case.tolerance)
        if done.prediction.next_map is not None:
            next_map = done.prediction.next_map.transpose(1, 2)
            np.testing.assert_allclose(stats(next_map), case.trace[f"next_stat_{i}"], atol=case.tolerance)
    np.testing.assert_allclose(steps[-1].prediction.code_sum, case.trace["fhat_final"], atol=case.tolerance)


def test_picture(replay: Replay) -> None:
    case, pictures = replay.case, replay.pictures
    assert pictures.shape[1:3] == tuple(case.info["trace"]["image_hw"])
    np.testing.assert_allclose(pictures[:, ::8, ::8].transpose(0, 3, 1, 2), case.trace["image_s8"], atol=case.tolerance)


def test_recorded_bits_are_what_the_filter_lets_through(replay: Replay) -> None:
    """Every bit that upstream drew survives our top-k and top-p on upstream's own logits; some values do not."""
    case, dropped = replay.case, 0
    sampling = case.info["sampling"]
    for step in case.plan.steps:
        logits = per_draw(torch.from_numpy(case.trace[f"logits_{step.order}"]), 2)
        left = filtered(logits, sampling["top_k"], torch.tensor([sampling["top_p"]])).isfinite()
        bits = torch.from_numpy(case.trace[f"bits_{step.order}"])[:, case.trace[f"pos_{step.order}"]]
        assert left.gather(2, bits.reshape(1, -1, 1).long()).all()
        dropped += int((~left).sum())
    assert dropped > 100


def test_the_plan_prunes_what_was_recorded(fastvar: Replay) -> None:
    recorded = fastvar.case.info["fastvar"]
    for step in fastvar.case.plan.steps:
        pruned = recorded["pruned_steps"].get(str(step.order))
        for layer in step.layers:
            asked = pruned["n_keep"] if pruned and layer.index in recorded["layers"] else None
            assert [(sub.name, sub.kept) for sub in layer.sub_layers] == [(n, asked) for n in recorded["sublayers"]]
    assert len(fastvar.selected) == len(recorded["layers"]) * len(recorded["sublayers"])


@pytest.mark.parametrize("where", range(9))
def test_kept_tokens_and_scores_at_the_cut(fastvar: Replay, where: int) -> None:
    recorded, trace = fastvar.case.info["fastvar"], fastvar.case.trace
    layer, sub = list(itertools.product(recorded["layers"], recorded["sublayers"]))[where]
    scores, index = fastvar.selected[where]
    wanted, cut = (torch.from_numpy(trace[f"{name}_{PRUNED}_{layer}_{sub}"]) for name in ("keep", "keepcut"))
    kept = index.shape[1]
    for row in range(2):
        rounding = 1e-5 * float(cut[row, 0])
        differ = set(index[row].tolist()) ^ set(wanted[row].tolist())
        assert all(cut[row, 1] - rounding <= scores[row, i] <= cut[row, 0] + rounding for i in differ)
        ordered = scores[row].sort(descending=True).values
        torch.testing.assert_close(ordered[kept - 1 : kept + 1], cut[row], rtol=1e-5, atol=0)


def mistaken(case: InfinityCase, rope_grid: Grid | None = None) -> float:
    eager = case.eager(rope_grid)
    return error(case, list(itertools.islice(eager.stream(case.request()), EARLY)))


def exact_gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def test_mistakes_in_a_block_are_noticed(plain: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the traces are for: each of these leaves their tolerance within the first steps."""
    case = plain.case
    assert mistaken(case) <= case.tolerance
    assert mistaken(case, rope_grid=case.plan.final_grid) > 100 * case.tolerance
    with monkeypatch.context() as patch:
        patch.setattr(F, "gelu", exact_gelu)
        assert mistaken(case) > case.tolerance
    with monkeypatch.context() as patch:
        patch.setattr(attention, "MAX_SCALE_MUL", math.inf)
        assert mistaken(case) > 10 * case.tolerance


def test_a_bilinear_restore_is_noticed(fastvar: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    case, eager = fastvar.case, fastvar.eager
    step, request = case.plan.steps[-1], case.request()
    own = Resize.axis
    for mode, within in (("area", True), ("bilinear", False)):
        monkeypatch.setattr(Resize, "axis", lambda self, _, *rest, mode=mode: own(self, mode, *rest))
        with torch.inference_mode():
            cond = eager.begin(eager.given(request))
            done = eager.run_step(step, cond, copy.copy(fastvar.before_last), eager.draw(step, request))
        found = error(case, [EagerStep(step, done, 0.0)])
        assert (found <= case.tolerance) == within
        assert within or found > 50 * case.tolerance
