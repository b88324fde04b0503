"""The world with sentences, and the training and judging of its model: a few steps at small sizes, end to end."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("matplotlib", "transformers", "sentencepiece"):
    pytest.importorskip(needed)

import bitwise_training  # noqa: E402
import evaluate_text_demo  # noqa: E402
import sentence_world  # noqa: E402
import train_text_demo  # noqa: E402
from demo_world import CLASS_NAMES  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from nextscale.export.models.bsq import BSQVAE  # noqa: E402
from nextscale.export.models.infinity import Infinity  # noqa: E402
from nextscale.runtime import Pipeline  # noqa: E402

SIZES = train_text_demo.Sizes(
    schedule=((1, 1), (4, 4), (16, 16)), depth=2, width=32, heads=2, bits=8, channels=16, norm_groups=4, text_width=128
)


@given(st.integers(0, 10**6))
def test_a_sentence_says_all_of_its_scene(index: int) -> None:
    shown, said = sentence_world.scene(index), sentence_world.sentence(index)
    colours = tuple(sentence_world.COLOURS)
    assert shown == sentence_world.scene(index)
    assert shown.colour != shown.ground_colour
    assert f" {colours[shown.colour]} {sentence_world.SPOKEN[shown.thing]}" in f" {said}"
    assert f"{colours[shown.ground_colour]} {sentence_world.GROUNDS[shown.ground]}" in said
    assert ("rotated" in said) == bool(shown.rotated)
    if CLASS_NAMES[shown.thing] in sentence_world.ROUND:
        assert not shown.rotated
    assert all(0 <= a < n for a, n in zip(shown.answers, sentence_world.ATTRIBUTES.values(), strict=True))


def test_pictures_follow_from_their_number_and_differ() -> None:
    first, again = sentence_world.pictures(5, 3), sentence_world.pictures(6, 2)
    assert first.shape == (3, 64, 64, 3)
    assert np.array_equal(first[1:], again)
    assert not np.array_equal(first[0], first[1])
    assert sentence_world.answers(5, 3)[:, 0].tolist() == [5, 6, 7]


@pytest.fixture
def vae() -> BSQVAE:
    torch.manual_seed(0)
    return BSQVAE(SIZES.tokenizer, len(SIZES.schedule), encoder_blocks=1)


def test_training_quantises_as_the_model_does(vae: BSQVAE) -> None:
    features = torch.randn(2, 8, 16, 16, requires_grad=True)
    through, _ = bitwise_training.quantise(vae, features, SIZES.plan)
    bits, total = vae.quantize.encode(features.detach(), SIZES.schedule)
    assert torch.allclose(through, total, atol=1e-6)
    targets, maps = bitwise_training.lesson(vae, features.detach(), SIZES.plan, torch.zeros(2))
    assert torch.equal(targets, torch.cat(bits, 1).long())
    assert maps.shape == (2, 16 + 256, 8)
    (3 * through).sum().backward()
    assert torch.equal(features.grad, torch.full_like(features, 3.0))


def test_flipped_bits_are_mended_by_later_scales(vae: BSQVAE) -> None:
    features = torch.randn(2, 8, 16, 16)
    plain, maps = bitwise_training.lesson(vae, features, SIZES.plan, torch.zeros(2))
    mended, wrong = bitwise_training.lesson(vae, features, SIZES.plan, torch.tensor([0.0, 1.0]))
    assert torch.equal(plain[0], mended[0])
    assert torch.equal(plain[1, :1], mended[1, :1])  # nothing stands before the first scale
    assert not torch.equal(plain[1, 1:17], mended[1, 1:17])
    assert torch.equal(maps[0], wrong[0])
    assert not torch.equal(maps[1], wrong[1])


def test_the_loss_of_bits_falls_and_texts_matter(vae: BSQVAE) -> None:
    torch.manual_seed(1)
    var = Infinity(SIZES.model, SIZES.schedule)
    var.text_tokens = SIZES.text_tokens
    bitwise_training.initialise_transformer(var)
    features = torch.randn(4, 8, 16, 16)
    targets, maps = bitwise_training.lesson(vae, features, SIZES.plan, torch.zeros(4))
    text, length = torch.randn(4, SIZES.text_tokens, 128), torch.tensor([3, 32, 7, 9], dtype=torch.int32)
    weight = torch.ones(targets.shape[1])
    optimizer = torch.optim.AdamW(var.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss, by_token = bitwise_training.loss_of(var, text, length, targets, maps, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(np.log(2), abs=0.1)  # bits are even before anything is learned
    assert losses[-1] < losses[0] - 0.002
    assert by_token.shape == (273,)
    assert var.text_proj_for_ca[0].weight.grad.abs().sum() > 0


@pytest.mark.timeout(600)
def test_a_few_steps_of_everything_end_in_pictures_of_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = argparse.Namespace(
        out=tmp_path / "out", work=tmp_path / "work", stage=None, pictures=64, tokenizer_minutes=0.03,
        transformer_minutes=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    train_text_demo.train(options, SIZES)
    assert {path.name for path in options.out.iterdir()} == {
        "infinity.safetensors", "vae.safetensors", "config.json", "text",
    }  # fmt: skip
    # How far a few seconds train depends on the machine, and where that is nowhere, tokens tie at FastVAR's cut.
    places = evaluate_text_demo.export_all(options.out, tmp_path, check="signatures")
    made = evaluate_text_demo.draw(places, 10**7, 3, 2, threads=1)
    assert {name: images.shape for name, images in made.items()} == dict.fromkeys(places, (3, 64, 64, 3))
    with Pipeline.open(places["fastvar"], threads=1) as pipeline:
        kept = {sub.kept for layer in pipeline.manifest.plan.steps[-1].layers for sub in layer.sub_layers}
        assert kept == {128}
        assert pipeline.generate("a red seven on blue dots", seed=1).subjects == ("a red seven on blue dots",)


def test_the_judge_learns_and_answers_every_attribute() -> None:
    pool, truth = sentence_world.pictures(0, 32), torch.from_numpy(sentence_world.answers(0, 32))
    torch.manual_seed(0)
    judge = evaluate_text_demo.AttributeJudge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = judge.loss(evaluate_text_demo.as_tensor(pool), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    trained = evaluate_text_demo.train_judge(0.01, pool, truth.numpy())
    seen = trained.answers(pool, batch=20)
    assert seen.shape == (32, 5)
    assert all(seen[:, i].min() >= 0 and seen[:, i].max() < n for i, n in enumerate(sentence_world.ATTRIBUTES.values()))


def test_losses_are_paired() -> None:
    truth = sentence_world.answers(0, 256)
    worse = truth.copy()
    worse[:32, 1] = (worse[:32, 1] + 1) % 7
    rows = evaluate_text_demo.judged({"full": truth, "fastvar": worse}, truth)
    assert rows["thing"]["loss"] == 0.0
    assert rows["colour"]["loss"] == rows["whole sentence"]["loss"] == 0.125
    assert rows["whole sentence"]["fastvar"] == 0.875
    low, high = rows["colour"]["loss_interval"]
    assert 0.0 < low < 0.125 < high
