"""The judge: its arithmetic against known answers, its trained weights against pictures it has not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
judge = pytest.importorskip("judge", exc_type=ImportError)

WEIGHTS = Path(__file__).parents[2] / "checkpoints" / "demo" / "judge.safetensors"


def test_frechet_distance_of_known_normals() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(60_000, 3))
    b = rng.normal(size=(60_000, 3)) * (1.0, 2.0, 3.0) + (1.0, 0.0, -2.0)
    # means: 1 + 4; covariances diag(1, 1, 1) and diag(1, 4, 9): (1 - 1)^2 + (2 - 1)^2 + (3 - 1)^2
    assert judge.frechet(a, b) == pytest.approx(10.0, abs=0.25)
    assert judge.frechet(a, a) == pytest.approx(0.0, abs=1e-9)
    assert judge.frechet(a, b) == pytest.approx(judge.frechet(b, a), rel=1e-9)


def test_frechet_distance_sees_correlation() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(20_000, 2))
    twin = np.stack([a[:, 0], a[:, 0]], axis=1)  # the same marginals
    # tr(I + C - 2 C^(1/2)) with C = [[1, 1], [1, 1]]: 2 + 2 - 2 sqrt(2)
    assert judge.frechet(a, twin) == pytest.approx(4 - 2 * 2**0.5, abs=0.05)


def test_bootstrap_interval_covers_the_mean() -> None:
    values = np.random.default_rng(2).normal(5.0, 1.0, size=400)
    means = judge.bootstrap_mean(values)
    low, high = judge.interval(means)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert values.mean() < judge.upper_bound(means) < high


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the judge is not trained yet")
def test_the_trained_judge_knows_fresh_pictures() -> None:
    from demo_world import FRESH, labels, pictures

    first, count = FRESH[0] + 500_000, 640
    seen, features = judge.verdicts(judge.load_judge(WEIGHTS), pictures(first, count))
    assert (seen == labels(first, count)).mean() >= 0.99
    assert features.shape == (count, judge.FEATURES)
    assert WEIGHTS.stat().st_size < 1_000_000
