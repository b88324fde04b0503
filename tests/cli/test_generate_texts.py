"""``nextscale generate`` with bundles that are conditioned on text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.bundles import text_plan, write_bundle
from support.command import Command

from nextscale.runtime import Pipeline
from nextscale.runtime.result import read_metadata


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("texts") / "texts", text_plan())


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("texts") / "prefix", text_plan(prefix=True))


def test_prompts_are_what_the_library_makes_of_them(texts: Path, tmp_path: Path, nextscale: Command) -> None:
    asked = ["--prompt", "a red cat", "--prompt", "castle, green", "--negative", "red", "--seed", "7"]
    run = nextscale(
        "generate", texts, *asked, "--guidance-scale", "1,2,3,4", "--threads", "1", "-o", tmp_path, "--json"
    )
    assert run.status == 0, run.err
    said = json.loads(run.out)
    with Pipeline.open(texts, threads=1) as pipeline:
        scales = [[1.0, 2.0, 3.0, 4.0]] * 2
        wanted = pipeline.generate(["a red cat", "castle, green"], negative="red", seed=7, guidance_scale=scales)
    for image, prompt, pixels in zip(said["images"], wanted.subjects, wanted.images, strict=True):
        assert (image["prompt"], image["negative"], image["guidance_scale"]) == (prompt, "red", [1, 2, 3, 4])
        np.testing.assert_array_equal(np.asarray(Image.open(image["file"])), pixels)
        assert read_metadata(image["file"])["nextscale.prompt"] == prompt


def test_what_is_drawn_is_told(texts: Path, tmp_path: Path, nextscale: Command) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 5), np.float32))
    run = nextscale("generate", texts, "--prompt", "a cat", "--prompt", "a cat", "-o", tmp_path / "o", "--seed", "1")
    assert "drawn: a cat\n" in run.out
    assert "2 pictures in " in run.out
    run = nextscale("generate", texts, "--features", tmp_path / "a.npy", "-o", tmp_path / "o", "--seed", "1")
    assert "drawn: what the features say\n" in run.out


@pytest.mark.parametrize("name", ["texts", "prefix"])
def test_features_are_their_prompt_s(
    name: str, tmp_path: Path, nextscale: Command, request: pytest.FixtureRequest
) -> None:
    bundle: Path = request.getfixturevalue(name)
    with Pipeline.open(bundle, threads=1) as pipeline:
        ((rows, length),) = pipeline.encode(["a castle"])
        wanted = pipeline.generate("a castle", seed=3).images[0]
    np.save(tmp_path / "a.npy", rows)
    features = f"{tmp_path / 'a.npy'}:{length}"
    run = nextscale("generate", bundle, "--features", features, "--seed", "3", "-o", tmp_path / "o", "--json")
    assert run.status == 0, run.err
    (image,) = json.loads(run.out)["images"]
    np.testing.assert_array_equal(np.asarray(Image.open(image["file"])), wanted)


REFUSED = [
    (["--labels", "1"], r"texts makes pictures of texts: give --prompt or --features"),
    (["--prompt", "a red cat a red cat"], r"has 7 tokens and this bundle reads 6"),
    (["--features", "{tmp}/wide.npy"], r"text is a prompt, or features of .*; found the shape \(2, 4\)"),
    (["--features", "{tmp}/good.npy:3"], r"features of 2 rows, of which 1 to all count; found 3"),
    (["--features", "{tmp}/text.npy"], r"text\.npy is no \.npy file of numbers"),
    (["--features", "{tmp}/objects.npy"], r"objects\.npy is no \.npy file of numbers"),
]


@pytest.mark.parametrize("arguments, sentence", REFUSED, ids=[" ".join(a) for a, _ in REFUSED])
def test_what_is_wrong_is_named(
    arguments: list[str], sentence: str, texts: Path, tmp_path: Path, nextscale: Command
) -> None:
    np.save(tmp_path / "wide.npy", np.ones((2, 4), np.float32))
    np.save(tmp_path / "good.npy", np.ones((2, 5), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("a cat")
    run = nextscale("generate", texts, *(a.format(tmp=tmp_path) for a in arguments), "-o", tmp_path / "o")
    assert run.status == 2
    assert re.search(sentence, run.sentence)
    assert not (tmp_path / "o").exists()


def test_a_bundle_without_an_encoder_says_so(tmp_path: Path, nextscale: Command) -> None:
    bundle = write_bundle(tmp_path / "plain", text_plan(), text_encoder=False)
    run = nextscale("generate", bundle, "--prompt", "a cat", "-o", tmp_path / "o")
    assert run.status == 2
    assert "prompt 'a cat': this bundle has no text encoder; give features of (rows, 5), or export" in run.sentence
