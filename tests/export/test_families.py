"""Infinity and HART from files to pictures, pruned, in batches, of texts: by the exporter and the runtime of VAR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from support.families import HART, INFINITY, PRUNED, SMALL, TEXT_TOKENS, TEXT_WIDTH, Small
from support.targets import build
from support.text import write_t5

from nextscale.export.bundle import Options, export_bundle, prepared
from nextscale.export.eager import Eager, EagerStep, Request
from nextscale.export.models.infinity import Infinity
from nextscale.export.reweight import reweight
from nextscale.export.text import load_text_encoder
from nextscale.plan.errors import InputError
from nextscale.plan.recipes import plan_for, recipe
from nextscale.runtime import Pipeline
from nextscale.runtime.backends import host
from nextscale.runtime.bundle import open_bundle
from nextscale.runtime.manifest import WEIGHTS_FILE, Recipe
from nextscale.runtime.text import TextTokenizer

pytestmark = pytest.mark.timeout(900)  # tracing comes first
TOLERANCE = 1e-4  # of max(1, std): what the golden traces are held to


class Made:
    """A small family's files, its pruned bundle and its eager model, made when first asked for."""

    def __init__(self, small: Small, folder: Path, encoder: Path | None = None) -> None:
        self.files = small.draw(folder / "drawn")
        self.checkpoint = small.load(self.files)
        self.plan = small.plan(self.checkpoint, PRUNED)
        text = None if encoder is None else load_text_encoder(encoder, TEXT_TOKENS, width=TEXT_WIDTH)
        options = Options(self.plan, Recipe(small.recipe, 1), text=text)
        self.bundle = export_bundle(self.checkpoint, options, folder / "bundle", lambda *_: None)
        self.eager = prepared(self.checkpoint, self.plan, "fp32")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"), d_model=TEXT_WIDTH)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, t5: Path) -> dict[str, Made]:
    """Every family; Infinity with a text encoder in its bundle."""

    class Lazily(dict[str, Made]):
        def __missing__(self, name: str) -> Made:
            self[name] = Made(SMALL[name], tmp_path_factory.mktemp(name), t5 if name == "infinity" else None)
            return self[name]

    return Lazily()


def texts(*lengths: int, seed: int = 0) -> list[tuple[np.ndarray[Any, Any], int]]:
    """Features, of which so many tokens count."""
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((TEXT_TOKENS, TEXT_WIDTH), np.float32), n) for n in lengths]


def forced(steps: list[EagerStep]) -> list[np.ndarray[Any, Any]]:
    return [step.prediction.tokens.numpy() for step in steps]


def run(eager: Eager, subjects: list[Any], **settings: Any) -> list[EagerStep]:
    return list(eager.stream(Request(subjects, **settings)))


@pytest.mark.parametrize("name", SMALL)
def test_the_runtime_draws_what_the_eager_model_draws(name: str, made: dict[str, Made]) -> None:
    """Sampled tokens where logits agree, and logits under forced tokens, step by step, for three pictures at once."""
    one, subjects = made[name], texts(3, TEXT_TOKENS, 6)
    settings = {"seed": 5, "guidance_scale": 2.5, "top_p": 0.9, "temperature": 0.8}
    wanted = run(one.eager, subjects, **settings)
    with Pipeline.open(one.bundle, threads=1, batch_sizes=(1, 3)) as pipeline:
        free = pipeline.generate(subjects, **settings)
        logits: list[np.ndarray[Any, Any]] = []
        again = pipeline.generate(
            subjects, **settings, tokens=forced(wanted), on_step=lambda step: logits.append(step.logits())
        )
    share = np.mean([np.mean(a == b.prediction.tokens.numpy()) for a, b in zip(free.tokens, wanted, strict=True)])
    assert share > 0.99
    # HART mixes codes (more_smooth), which makes rounding grow three- to sevenfold from scale to scale.
    allowed = TOLERANCE * (20 if name == "hart" else 1)
    for got, step in zip(logits, wanted, strict=True):
        expected = step.prediction.logits.numpy()
        assert np.abs(got - expected).max() <= allowed * max(1.0, float(expected.std()))
    picture = one.eager.decode(wanted[-1].prediction.code_sum)
    assert np.abs(again.floats - picture).max() <= 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_a_picture_does_not_depend_on_its_batch(name: str, made: dict[str, Made]) -> None:
    one, subjects = made[name], texts(2, 7)
    with Pipeline.open(one.bundle, threads=1, batch_sizes=(1, 2)) as pipeline:
        together = pipeline.generate(subjects, seed=3)
        alone = [pipeline.generate([text], seed=3, first_image=i) for i, text in enumerate(subjects)]
    for i, single in enumerate(alone):
        assert all(np.array_equal(a[i], b[0]) for a, b in zip(together.tokens, single.tokens, strict=True))
        np.testing.assert_allclose(together.floats[i], single.floats[0], atol=1e-4)


def test_short_texts_are_computed_short_and_make_the_same_pictures(
    made: dict[str, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits under the eager model's tokens, which it computes with every text padded to the longest; prompts too."""
    one, subjects = made["infinity"], texts(3, 6)
    settings = {"seed": 5, "guidance_scale": 2.5, "top_p": 0.9, "temperature": 0.8}
    wanted = run(one.eager, subjects, **settings)
    with Pipeline.open(one.bundle, threads=1, batch_sizes=(2,)) as pipeline:
        encoded = pipeline.encode(["a cat", "The golden river."])
    monkeypatch.setattr(host, "SHORT_TEXT", 4)
    with Pipeline.open(one.bundle, threads=1, batch_sizes=(2,)) as pipeline:
        assert pipeline._slots._free[0].fitting(6).begin.inputs[0].shape == ("images", 8, TEXT_WIDTH)
        logits: list[np.ndarray[Any, Any]] = []
        pipeline.generate(
            subjects, **settings, tokens=forced(wanted), on_step=lambda step: logits.append(step.logits())
        )
        short = pipeline.encode(["a cat", "The golden river."])
    for got, step in zip(logits, wanted, strict=True):
        expected = step.prediction.logits.numpy()
        assert np.abs(got - expected).max() <= TOLERANCE * max(1.0, float(expected.std()))
    for (rows, length), (all_rows, all_length) in zip(short, encoded, strict=True):
        assert length == all_length
        np.testing.assert_allclose(rows, all_rows, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_every_row_counts_by_its_own_text(name: str, made: dict[str, Made]) -> None:
    one, ((rows, length),) = made[name], texts(5)
    other = rows.copy()
    other[length:] += 1.0
    with Pipeline.open(one.bundle, threads=1) as pipeline:
        first, more, behind = (
            pipeline.generate([text], seed=1) for text in ((rows, length), (rows, length + 1), (other, length))
        )
    assert not np.array_equal(first.floats, more.floats)
    # A prefix is read whole, padding included; of a text that is attended to, what stands behind it is not looked at.
    assert np.array_equal(first.floats, behind.floats) == (name != "hart")


def test_guidance_by_scale_and_against_a_text(made: dict[str, Made]) -> None:
    one, (text, against) = made["infinity"], texts(5, 4)
    by_scale = [1.0, 2.0, 3.0, 4.0]
    with Pipeline.open(one.bundle, threads=1) as pipeline:
        constant = pipeline.generate([text], seed=1, guidance_scale=3.0)
        listed = pipeline.generate([text], seed=1, guidance_scale=[by_scale])
        same = pipeline.generate([text], seed=1, guidance_scale=[[3.0] * 4])
        negative = pipeline.generate([text], seed=1, guidance_scale=3.0, negative=against)
        with pytest.raises(InputError, match="4 numbers, one for every scale; found 3"):
            pipeline.generate([text], guidance_scale=[[1.0, 2.0, 3.0]])
    assert np.array_equal(constant.floats, same.floats)
    assert not np.array_equal(constant.floats, listed.floats)
    assert not np.array_equal(constant.floats, negative.floats)
    assert listed.metadata(0)["nextscale.guidance_scale"] == "1.0, 2.0, 3.0, 4.0"
    for result, asked in (
        (listed, {"guidance_scale": by_scale}),
        (negative, {"guidance_scale": 3.0, "negative": against}),
    ):
        wanted = run(one.eager, [text], seed=1, top_p=0.97, temperature=0.5, **asked)
        assert all(np.array_equal(a, b) for a, b in zip(result.tokens, forced(wanted), strict=True))


def test_prompts_go_through_the_bundle_s_own_encoder(made: dict[str, Made], t5: Path) -> None:
    """No PyTorch is needed for it; features of a prompt are those of the encoder, whatever stands beside it."""
    one = made["infinity"]
    encoder = load_text_encoder(t5, TEXT_TOKENS).encoder
    with Pipeline.open(one.bundle, threads=1, batch_sizes=(2,)) as pipeline:
        prompts = ["a cat", "the golden river", "a cat"]
        encoded = pipeline.encode(prompts)
        drawn = pipeline.generate(prompts, seed=2)
        given = pipeline.generate(encoded, seed=2)
        with pytest.raises(InputError, match=rf"tokens.*{TEXT_TOKENS}"):
            pipeline.generate("a cat " * 40)
        cut = pipeline.encode(["a cat " * 40], truncate=True)
    assert drawn.subjects == tuple(prompts)
    assert given.subjects == ("", "", "")
    np.testing.assert_array_equal(drawn.floats, given.floats)
    assert cut[0][1] == TEXT_TOKENS
    assert drawn.metadata(1)["nextscale.prompt"] == "the golden river"
    for (features, length), prompt in zip(encoded, prompts, strict=True):
        ids, lengths = TextTokenizer.of(open_bundle(one.bundle)).ids_of([prompt])
        assert lengths[0] == length
        with torch.inference_mode():
            wanted = encoder(torch.from_numpy(ids), torch.from_numpy(lengths))[0].numpy()
        np.testing.assert_allclose(features[:length], wanted[:length], atol=1e-4)


def test_a_bundle_without_an_encoder_says_so(made: dict[str, Made]) -> None:
    with (
        Pipeline.open(made["hart"].bundle, threads=1) as pipeline,
        pytest.raises(InputError, match="this bundle has no text encoder; give features"),
    ):
        pipeline.generate("a cat")


def test_previews_and_code_sums_stand_on_latents(made: dict[str, Made]) -> None:
    one = made["patched"]
    with Pipeline.open(one.bundle, threads=1) as pipeline:
        steps = list(pipeline.stream(texts(4), seed=0))
        assert steps[-1].code_sum.shape == (1, 3, 12, 10)
        assert pipeline.decode(steps[0].code_sum) is not None
        assert steps[-1].tokens.shape == (1, 30, 12)
    assert set(np.unique(steps[-1].tokens)) == {0, 1}


@pytest.mark.parametrize("name", SMALL)
def test_no_node_computes_on_a_weight_alone(name: str, made: dict[str, Made]) -> None:
    """Or every session would hold its own folded copy of it."""
    one = made[name]
    for path in sorted(one.bundle.glob("*.onnx")):
        graph = onnx.load_model(path, load_external_data=False).graph
        weights = {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
        constants = {t.name for t in graph.initializer} | {
            o for n in graph.node if n.op_type == "Constant" for o in n.output
        }
        alone = [
            n.name for n in graph.node if set(n.input) & weights and set(filter(None, n.input)) <= weights | constants
        ]
        assert not alone, path.name
    manifest = json.loads((one.bundle / "manifest.json").read_text())
    assert (one.bundle / WEIGHTS_FILE).stat().st_size > 0
    assert all(weight["rule"] for key, weight in manifest["weights"].items() if key.startswith("derived/"))


def test_a_text_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "t5")
    with pytest.raises(InputError, match=r"32.*128|128.*32"):
        load_text_encoder(folder, TEXT_TOKENS, width=TEXT_WIDTH)


@pytest.mark.slow
@pytest.mark.parametrize("small", [INFINITY, HART], ids=lambda small: small.recipe)
def test_half_graphs_are_their_float32_twins_but_for_rounding(small: Small, tmp_path: Path) -> None:
    checkpoint = small.load(small.draw(tmp_path / "drawn"))
    options = Options(small.plan(checkpoint, PRUNED), Recipe(small.recipe, 1), "fp16")
    bundle = export_bundle(checkpoint, options, tmp_path / "half", lambda *_: None)
    assert all(v.max_error is not None and v.max_error < 5e-2 for v in open_bundle(bundle).manifest.verified)


@pytest.mark.parametrize("name", SMALL)
def test_tensorrt_builds_every_graph(name: str, made: dict[str, Made], tmp_path: Path) -> None:
    bundle = made[name].bundle
    engines = build(bundle, tmp_path / "target").target.engines
    assert {engine.graph for engine in engines} == {graph.name for graph in open_bundle(bundle).manifest.graphs}


def test_rules_and_sources_of_derived_weights_are_the_family_s_own(made: dict[str, Made]) -> None:
    weights = open_bundle(made["infinity"].bundle).manifest.weights
    assert weights["derived/var/rope_cos_01"].rule == Infinity.DERIVED["rope_cos"].rule
    assert weights["derived/var/start_level"].keys == ("var/pos_start", "var/lvl_embed.weight")
    assert "relative_attention_bias" in str(weights["derived/text/position_bias"].rule)


def test_a_recipe_of_another_family_is_refused(made: dict[str, Made]) -> None:
    checkpoint = made["hart"].checkpoint
    with pytest.raises(InputError, match=r"'var-d16' is for var, and the checkpoint is of hart: .* such as hart-1024"):
        plan_for(recipe("var-d16"), checkpoint.model, checkpoint.tokenizer, checkpoint.schedule)


def test_a_fine_tune_s_weights_go_behind_the_same_graphs(made: dict[str, Made], tmp_path: Path) -> None:
    """The text encoder stays as it was, and so does what the manifest says of it."""
    one = made["infinity"]
    other = reweight(one.bundle, one.files[0], None, tmp_path / "again", lambda *_: None)
    old, new = open_bundle(one.bundle).manifest, open_bundle(other).manifest
    assert (one.bundle / WEIGHTS_FILE).read_bytes() == (other / WEIGHTS_FILE).read_bytes()
    assert [v for v in new.verified if v.graph == "text"] == [v for v in old.verified if v.graph == "text"]
    assert new.tokenizer == old.tokenizer
    assert {v.graph for v in new.verified} == {v.graph for v in old.verified}


def test_signatures_are_checked_where_nothing_is_run(tmp_path: Path) -> None:
    files = INFINITY.draw(tmp_path / "drawn")
    checkpoint = INFINITY.load(files)
    options = Options(INFINITY.plan(checkpoint, PRUNED), Recipe("infinity-125m-0.25m", 1), "bf16", "signatures")
    bundle = export_bundle(checkpoint, options, tmp_path / "bf16", lambda *_: None)
    verified = open_bundle(bundle).manifest.verified
    assert {v.graph for v in verified} >= {"begin", "step_00", "decode"}
    assert all(v.max_error is None and "not run" in v.how for v in verified)
    assert "var" not in vars(checkpoint)  # no model was ever made of the checkpoint
    again = reweight(bundle, files[0], files[1], tmp_path / "again", lambda *_: None)
    assert open_bundle(again).manifest.verified == verified
