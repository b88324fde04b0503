"""Prompts to ids by a tokenizer of one file: what surrounds them, padding, limits, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.runtime.errors import BundleError
from nextscale.runtime.text import TextTokenizer

TOKENS, PAD, END = 8, 0, 1
WORDS = ("red", "green", "cat", "castle", "of", "a")


def content(length: int | None = TOKENS, direction: str = "right") -> str:
    """Whole words and ``</s>`` at the end; says how it pads."""
    vocabulary = {"<pad>": PAD, "</s>": END, "<unk>": 2} | {word: 3 + i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", END)])
    tokenizer.enable_truncation(3)  # as a folder may come; the length that a bundle is padded to is the limit
    if length is not None:
        tokenizer.enable_padding(direction=direction, pad_id=PAD, pad_token="<pad>", length=length)
    return str(tokenizer.to_str())


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(content())


def test_ids_are_padded_on_the_right_and_end_with_what_the_tokenizer_adds(tokenizer: TextTokenizer) -> None:
    ids, length = tokenizer.ids_of(["a red cat", "", "castle of cat of cat of cat"])
    assert (ids.dtype, length.dtype) == (np.int32, np.int32)
    assert ids.tolist() == [
        [8, 3, 5, END, PAD, PAD, PAD, PAD],
        [END] + [PAD] * 7,
        [6, 7, 5, 7, 5, 7, 5, END],
    ]
    assert length.tolist() == [4, 1, 8]


def test_the_limit_is_what_the_file_says(tokenizer: TextTokenizer) -> None:
    assert (tokenizer.tokens, tokenizer.pad_id, tokenizer.vocabulary) == (TOKENS, PAD, 3 + len(WORDS))


def test_no_prompts_are_no_rows(tokenizer: TextTokenizer) -> None:
    ids, length = tokenizer.ids_of([])
    assert (ids.shape, length.shape) == ((0, TOKENS), (0,))


def test_a_longer_prompt_is_refused_with_its_count(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match=r"'a a a a a a a a' has 9 tokens and this bundle reads 8"):
        tokenizer.ids_of(["a", "a a a a a a a a"])


@given(st.lists(st.sampled_from(WORDS), max_size=30))
def test_truncation_keeps_the_beginning_and_what_is_added(words: list[str]) -> None:
    ids, length = TextTokenizer(content()).ids_of([" ".join(words)], truncate=True)
    kept = [3 + WORDS.index(word) for word in words][: TOKENS - 1]
    assert length.tolist() == [len(kept) + 1]
    assert ids[0].tolist() == [*kept, END] + [PAD] * (TOKENS - 1 - len(kept))


def test_a_prompt_may_name_a_special_token(tokenizer: TextTokenizer) -> None:
    ids, length = tokenizer.ids_of(["a<pad>cat"])
    assert ids[0, : length[0]].tolist() == [8, PAD, 5, END]


@pytest.mark.parametrize("prompts", ["a cat", None, [None], [b"a cat"], [3], {"a": 1}, np.array(["a"])])
def test_what_is_no_list_of_texts_is_refused(tokenizer: TextTokenizer, prompts: Any) -> None:
    with pytest.raises(InputError, match="prompts are a list of texts"):
        tokenizer.ids_of(prompts)


def test_half_a_surrogate_pair_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match="no text that UTF-8 can hold"):
        tokenizer.ids_of(["\ud800"])


def test_threads_may_share_it(tokenizer: TextTokenizer) -> None:
    prompts = [" ".join(WORDS[: i % 6]) for i in range(400)]
    expected = [tokenizer.ids_of([prompt]).ids.tolist() for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda prompt: tokenizer.ids_of([prompt]).ids.tolist(), prompts)) == expected


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "cannot be read as a tokenizer"),
        ("{}", "cannot be read as a tokenizer"),
        (content().replace("WordLevel", "Odd"), "cannot be read as a tokenizer"),
        (content(None), "does not say how prompts are padded"),
        (content(TOKENS, "left"), "does not say how prompts are padded"),
    ],
)
def test_a_broken_file_is_a_broken_bundle(text: str, words: str) -> None:
    with pytest.raises(BundleError, match=rf"here/tokenizer\.json.*{words}.*export the bundle again"):
        TextTokenizer(text, Path("here/tokenizer.json"))


def opened(folder: Path, tokenizer: str | None) -> Any:
    """As much of an opened bundle as is asked for."""
    return SimpleNamespace(folder=folder, manifest=SimpleNamespace(tokenizer=tokenizer), path=folder.joinpath)


def test_a_bundle_gives_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content(), encoding="utf-8")
    assert TextTokenizer.of(opened(tmp_path, "tokenizer.json")).ids_of(["cat"]).length.tolist() == [2]


def test_a_bundle_without_one_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no text encoder"):
        TextTokenizer.of(opened(tmp_path, None))


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'nextscale\[text\]'"):
        TextTokenizer(content="{}")


def test_only_prompts_need_the_package() -> None:
    code = "import sys, nextscale.runtime.text; print({'tokenizers', 'transformers', 'torch'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
