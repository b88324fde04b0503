"""Our selection and restore inside the recorded run of FastVAR's original code on Infinity.

Nothing but the transformer around the pruning is a stand-in (``support/infinity_reference.py``).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.infinity_reference import Done, Infinity, Recorded, load, plan_of

Run = tuple[Recorded, list[Done]]
PRUNED = 9


@pytest.fixture(scope="module")
def run() -> Run:
    case = load("infinity_fastvar_025M")
    with torch.inference_mode():
        return case, list(Infinity(case, plan_of(case)).run())


def test_drawn_weights_are_the_recorded_ones(run: Run) -> None:
    case = run[0]
    total = sum(float(t.double().abs().sum()) for t in case.state.values())
    assert total == pytest.approx(case.info["weights"]["abs_sum"]["infinity:"], rel=1e-6)


def test_the_plan_prunes_what_was_recorded(run: Run) -> None:
    case, steps = run
    recorded = case.info["fastvar"]
    for done in steps:
        pruned = recorded["pruned_steps"].get(str(done.step.order))
        for layer in done.step.layers:
            asked = pruned["n_keep"] if pruned and layer.index in recorded["layers"] else None
            assert [sub.kept for sub in layer.sub_layers] == [asked] * 3
    assert set(steps[PRUNED].kept) == {f"{i}_{sub}" for i in recorded["layers"] for sub in recorded["sublayers"]}


@pytest.mark.parametrize("where", [f"{layer}_{sub}" for layer in (3, 4, 5) for sub in ("sa", "ca", "ffn")])
def test_kept_tokens_and_scores_at_the_cut(run: Run, where: str) -> None:
    case, steps = run
    scores, index = steps[PRUNED].kept[where]
    wanted, cut = (torch.from_numpy(case.trace[f"{name}_{PRUNED}_{where}"]) for name in ("keep", "keepcut"))
    for row in range(2):
        rounding = 1e-5 * float(cut[row, 0])
        differ = set(index[row].tolist()) ^ set(wanted[row].tolist())
        assert all(cut[row, 1] - rounding <= scores[row, i] <= cut[row, 0] + rounding for i in differ)
        ordered = scores[row].sort(descending=True).values
        kept = index.shape[1]
        torch.testing.assert_close(ordered[kept - 1 : kept + 1], cut[row], rtol=1e-5, atol=0)


def test_logits(run: Run) -> None:
    case, steps = run
    for i, done in enumerate(steps):
        got = done.logits[:, case.trace[f"pos_{i}"]].numpy()
        assert np.abs(got - case.trace[f"logits_{i}"]).max() <= case.tolerance, f"step {i}"


def stats(channels_first: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    flat = channels_first.flatten(2).double()
    return torch.stack((flat.mean(2), flat.std(2, correction=0)), dim=2).numpy()


def test_code_sums_and_next_inputs(run: Run) -> None:
    case, steps = run
    for i, done in enumerate(steps):
        np.testing.assert_allclose(stats(done.code_sum), case.trace[f"fhat_stat_{i}"], atol=case.tolerance)
        if done.next_map is not None:
            np.testing.assert_allclose(stats(done.next_map), case.trace[f"next_stat_{i}"], atol=case.tolerance)
    np.testing.assert_allclose(steps[-1].code_sum, case.trace["fhat_final"], atol=case.tolerance)
