"""The demo trainings: gradients, lessons and resuming, on models small enough for a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("matplotlib")

import demo_tokenizer  # noqa: E402
import demo_training  # noqa: E402
import demo_transformer  # noqa: E402

from nextscale.export.models.var import VAR  # noqa: E402
from nextscale.export.models.vqvae import VQVAE  # noqa: E402
from nextscale.plan.types import Model, Tokenizer  # noqa: E402

SCHEDULE = ((1, 1), (2, 2), (4, 4))
TOKENIZER = Tokenizer(16, (1, 1, 1), res_blocks=1, code_channels=8, vocabulary=16, stride=4, norm_groups=4)
MODEL = Model("var", 2, 32, 2, 16, 64, vocabulary=16, code_channels=8, classes=16, shared_adaln=True)


@pytest.fixture
def vae() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(TOKENIZER, len(SCHEDULE), encoder_blocks=1)


def test_quantised_features_pass_the_decoders_gradient_through(vae: VQVAE) -> None:
    features = torch.randn(2, 8, 4, 4, requires_grad=True)
    through, _, tokens, wanted = demo_tokenizer.quantise(vae, features, SCHEDULE)
    (3 * through).sum().backward()
    assert torch.equal(features.grad, torch.full_like(features, 3.0))
    assert tokens.shape == (2, 21)
    assert wanted.shape == (2, 21, 8)


def test_training_quantises_as_the_model_does(vae: VQVAE) -> None:
    features = torch.randn(3, 8, 4, 4)
    through, _, tokens, _ = demo_tokenizer.quantise(vae, features, SCHEDULE)
    expected, total = vae.quantize.encode(features, SCHEDULE)
    assert torch.equal(tokens, torch.cat(expected, 1))
    assert torch.allclose(through, total, atol=1e-6)


def test_revived_rows_come_from_the_pictures(vae: VQVAE) -> None:
    wanted, usage = torch.randn(2, 5, 8), torch.ones(16)
    usage[[3, 7]] = 0.0
    before = vae.quantize.embedding.weight.clone()
    assert demo_tokenizer.revive(vae, usage, wanted, below=0.5) == 2
    after = vae.quantize.embedding.weight
    assert all((wanted.flatten(0, 1) == after[row]).all(1).any() for row in (3, 7))
    assert torch.equal(after[:3], before[:3])


def test_a_lesson_without_exchanges_is_plain_teacher_forcing(vae: VQVAE) -> None:
    features = torch.randn(2, 8, 4, 4)
    targets, maps = demo_transformer.lesson(vae, features, SCHEDULE, torch.zeros(2))
    assert torch.equal(targets, torch.cat(vae.quantize.encode(features, SCHEDULE)[0], 1))
    assert maps.shape == (2, 20, 8)
    short, short_maps = demo_transformer.lesson(vae, features, SCHEDULE[:2], torch.zeros(2))
    assert torch.equal(short, targets[:, :5])
    assert torch.equal(short_maps, maps[:, :4])


def test_a_lesson_with_exchanges_teaches_to_mend_them(vae: VQVAE) -> None:
    features = torch.randn(2, 8, 4, 4)
    plain, plain_maps = demo_transformer.lesson(vae, features, SCHEDULE, torch.zeros(2))
    mended, maps = demo_transformer.lesson(vae, features, SCHEDULE, torch.ones(2))
    assert torch.equal(plain[:, :1], mended[:, :1])  # nothing stands before the first scale
    assert not torch.equal(plain[:, 1:], mended[:, 1:])
    assert not torch.equal(plain_maps, maps)


def test_the_compiled_path_is_the_models_own_forward() -> None:
    torch.manual_seed(1)
    var = VAR(MODEL, SCHEDULE)
    demo_transformer.initialise(var)
    labels, maps = torch.tensor([0, 16]), torch.randn(2, 20, 8)
    whole, resize = demo_transformer.whole(0), demo_transformer.Resize()

    def block(layer, x, adaln, bias):  # type: ignore[no-untyped-def]
        return layer(x, {"adaln": adaln}, whole, (1, x.shape[1]), resize, bias=bias.float()).x

    with torch.no_grad():
        logits = demo_transformer.teacher_forced(var, labels, maps, block)
        assert torch.allclose(logits, var(labels, maps), atol=1e-5)
        short = demo_transformer.shortened(var, 2)
        assert torch.allclose(
            demo_transformer.teacher_forced(short, labels, maps[:, :4], block), logits[:, :5], atol=1e-5
        )


def test_training_resumes_where_it_was_saved(tmp_path: Path) -> None:
    def start(minutes: float) -> demo_training.Training:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(model.parameters())
        return demo_training.Training(model, optimizer, demo_training.Clock(minutes), tmp_path / "state.pt")

    first = start(minutes=0.02)
    assert not first.resume()
    for _ in first.steps(1e-2):
        first.update(first.model(torch.ones(2, 4)).square().mean())
    second = start(minutes=0.02)
    assert second.resume()
    assert second.step == first.step > 0
    assert torch.equal(second.model.weight, first.model.weight)
    assert not list(second.steps(1e-2))  # its time was over


def test_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    rates = [demo_training.learning_rate(1.0, step, progress) for step, progress in ((0, 0.0), (149, 0.0), (9999, 1.0))]
    assert rates == pytest.approx([1 / 150, 1.0, 0.01])


def test_a_few_steps_lower_the_pictures_loss(tmp_path: Path, vae: VQVAE) -> None:
    from demo_world import pictures

    pool = pictures(0, 64, workers=0)
    images = demo_tokenizer.signed(pool[:16])

    def loss() -> float:
        with torch.no_grad():
            shown = vae.decoder(vae.post_quant_conv(vae.features(images)))
        return float(demo_tokenizer.picture_loss(shown, images))

    demo_tokenizer.initialise(vae)
    before = loss()
    demo_tokenizer.train_tokenizer(vae, ((1, 1), (4, 4), (16, 16)), pool, tmp_path, minutes=0.08, batch=8)
    assert loss() < before
    assert np.isfinite(before)
