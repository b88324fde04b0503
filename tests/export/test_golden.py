"""The eager model under recorded tokens against traces of the original implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.golden import VAR_CASES, Case, load_case

from nextscale.export.eager import Eager, EagerStep, Request
from nextscale.plan.chain import next_scale_plan
from nextscale.plan.types import Sampling


@pytest.fixture(scope="module", params=VAR_CASES)
def replay(request: pytest.FixtureRequest) -> tuple[Case, list[EagerStep], np.ndarray]:
    case = load_case(request.param)
    sampling = case.info["sampling"]
    plan = next_scale_plan(case.info["case"], case.model, case.tokenizer, case.schedule, Sampling(sampling["top_k"]))
    eager = Eager(plan, *case.models())
    pictures, steps = eager.generate(
        Request(
            case.info["conditioning"]["labels"],
            guidance_scale=sampling["cfg"],
            top_p=sampling["top_p"],
            tokens=case.tokens(),
        )
    )
    return case, steps, pictures


def _stats(channels_first: torch.Tensor) -> np.ndarray:
    flat = channels_first.flatten(2).double()
    return torch.stack((flat.mean(2), flat.std(2, correction=0)), dim=2).numpy()


def test_drawn_weights_are_the_recorded_ones(replay: tuple[Case, list[EagerStep], np.ndarray]) -> None:
    case = replay[0]
    for prefix, recorded in case.info["weights"]["abs_sum"].items():
        total = sum(float(t.double().abs().sum()) for t in case.state[prefix].values())
        assert total == pytest.approx(recorded, rel=1e-6)


def test_logits(replay: tuple[Case, list[EagerStep], np.ndarray]) -> None:
    case, steps, _ = replay
    for i, done in enumerate(steps):
        got = done.prediction.logits[:, case.trace[f"pos_{i}"]].numpy()
        assert np.abs(got - case.trace[f"logits_{i}"]).max() <= case.tolerance, f"step {i}"


def test_code_sums_and_next_inputs(replay: tuple[Case, list[EagerStep], np.ndarray]) -> None:
    case, steps, _ = replay
    for i, done in enumerate(steps):
        np.testing.assert_allclose(_stats(done.prediction.code_sum), case.trace[f"fhat_stat_{i}"], atol=case.tolerance)
        if done.prediction.next_map is not None:
            channels_first = done.prediction.next_map.transpose(1, 2)
            np.testing.assert_allclose(_stats(channels_first), case.trace[f"next_stat_{i}"], atol=case.tolerance)
    np.testing.assert_allclose(steps[-1].prediction.code_sum, case.trace["fhat_final"], atol=case.tolerance)


def test_picture(replay: tuple[Case, list[EagerStep], np.ndarray]) -> None:
    case, _, pictures = replay
    assert pictures.shape[1:3] == tuple(case.info["trace"]["image_hw"])
    np.testing.assert_allclose(pictures[:, ::8, ::8].transpose(0, 3, 1, 2), case.trace["image_s8"], atol=case.tolerance)


@pytest.mark.parametrize("name", VAR_CASES)
def test_recorded_tokens_are_what_filters_let_through(name: str) -> None:
    """Every token that upstream sampled survives our top-k and top-p on upstream's own logits."""
    from nextscale.export.models.sampling import filtered

    case = load_case(name)
    sampling = case.info["sampling"]
    for i in range(len(case.schedule)):
        logits = torch.from_numpy(case.trace[f"logits_{i}"])
        left = filtered(logits, sampling["top_k"], torch.tensor([sampling["top_p"]]))
        ids = torch.from_numpy(case.trace[f"ids_{i}"]).long()[:, case.trace[f"pos_{i}"]]
        assert torch.isfinite(left.gather(2, ids.unsqueeze(-1))).all()
