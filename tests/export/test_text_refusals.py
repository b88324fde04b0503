"""Folders of text encoders in the forms that they come in, and what is refused of them, with what to do."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.text import TOKENS, write_qwen2, write_t5

from nextscale.export.text import load_text_encoder
from nextscale.plan.errors import EnvironmentProblem, InputError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {"t5": write_t5(root / "t5"), "qwen2": write_qwen2(root / "qwen2")}


@pytest.fixture
def t5(drawn: dict[str, Path], tmp_path: Path) -> Path:
    """A folder that a test may break."""
    return Path(shutil.copytree(drawn["t5"], tmp_path / "t5"))


@pytest.fixture
def qwen2(drawn: dict[str, Path], tmp_path: Path) -> Path:
    """A folder that a test may break."""
    return Path(shutil.copytree(drawn["qwen2"], tmp_path / "qwen2"))


def change(path: Path, **entries: Any) -> None:
    """Other entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def rewritten(folder: Path, how: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Other tensors in the weights file."""
    tensors = how({k: v.clone() for k, v in load_file(folder / "model.safetensors").items()})
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")


def same(folder: Path, other: Path) -> bool:
    """Whether both hold the same encoder."""
    mine, wanted = (load_text_encoder(f, TOKENS).encoder.state_dict() for f in (folder, other))
    return mine.keys() == wanted.keys() and all(torch.equal(mine[key], wanted[key]) for key in wanted)


def test_weights_may_be_pytorchs(t5: Path, drawn: dict[str, Path]) -> None:
    torch.save(load_file(t5 / "model.safetensors"), t5 / "pytorch_model.bin")
    (t5 / "model.safetensors").unlink()
    assert same(t5, drawn["t5"])
    assert [f.name for f in load_text_encoder(t5, TOKENS).files] == ["pytorch_model.bin"]


def test_weights_may_lie_in_shards(qwen2: Path, drawn: dict[str, Path]) -> None:
    tensors = load_file(qwen2 / "model.safetensors")
    halves = [dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:])]
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, half in zip(names, halves, strict=True):
        save_file(half, qwen2 / name)
    index = {"weight_map": {key: name for name, half in zip(names, halves, strict=True) for key in half}}
    (qwen2 / "model.safetensors.index.json").write_text(json.dumps(index))
    (qwen2 / "model.safetensors").unlink()
    assert same(qwen2, drawn["qwen2"])
    assert {f.name for f in load_text_encoder(qwen2, TOKENS).files} >= set(names)
    (qwen2 / names[1]).unlink()
    with pytest.raises(InputError, match=names[1]):
        load_text_encoder(qwen2, TOKENS)


def test_weights_may_be_a_whole_model_of_half_precision(t5: Path, tmp_path: Path) -> None:
    """The decoder beside the encoder, and the one embedding under two names."""
    whole = write_t5(tmp_path / "whole", encoder_only=False)

    def halved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
        return {key: tensor.half() for key, tensor in tensors.items()}

    rewritten(whole, halved)
    assert any(key.startswith("decoder.") for key in load_file(whole / "model.safetensors"))
    encoder = load_text_encoder(whole, TOKENS).encoder
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    shared = load_file(whole / "model.safetensors")["shared.weight"]
    assert torch.equal(encoder.get_parameter("shared.weight"), shared.float())
    rewritten(whole, lambda tensors: {k: v for k, v in tensors.items() if k != "shared.weight"})
    assert torch.equal(load_text_encoder(whole, TOKENS).encoder.get_parameter("shared.weight"), shared.float())


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model."])
def test_a_language_model_may_stand_under_any_of_its_names(prefix: str, qwen2: Path, drawn: dict[str, Path]) -> None:
    beside = {"visual.blocks.0.attn.qkv.weight": torch.zeros(2, 2), "lm_head.weight": torch.zeros(3, 2)}
    rewritten(qwen2, lambda tensors: {f"{prefix}{key}": tensor for key, tensor in tensors.items()} | beside)
    assert same(qwen2, drawn["qwen2"])


def test_no_pickle_is_executed(t5: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    (t5 / "model.safetensors").unlink()
    (t5 / "pytorch_model.bin").write_bytes(pickle.dumps({"shared.weight": Payload()}, protocol=2))
    with pytest.raises(InputError, match="refused: it holds more than tensors"):
        load_text_encoder(t5, TOKENS)
    torch.save({"shared.weight": Payload()}, t5 / "pytorch_model.bin")
    with pytest.raises(InputError, match="refused: it holds more than tensors"):
        load_text_encoder(t5, TOKENS)
    assert not (tmp_path / "executed").exists()


def test_no_code_of_the_folder_is_run(t5: Path, tmp_path: Path) -> None:
    (t5 / "odd.py").write_text(f"import os; os.mkdir({str(tmp_path / 'executed')!r})")
    change(t5 / "config.json", model_type="odd", auto_map={"AutoConfig": "odd.Odd", "AutoTokenizer": "odd.Odd"})
    with pytest.raises(InputError, match=r"config\.json cannot be read"):
        load_text_encoder(t5, TOKENS)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "spiece.model"])
def test_a_missing_file_is_named(name: str, t5: Path) -> None:
    (t5 / name).unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_text_encoder(t5, TOKENS)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "spiece.model"])
def test_a_damaged_file_is_named(name: str, t5: Path) -> None:
    (t5 / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match=name.replace(".", r"\.") if name != "spiece.model" else "cannot be converted"):
        load_text_encoder(t5, TOKENS)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_tokenizer_file_is_named(content: str, qwen2: Path) -> None:
    (qwen2 / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json cannot be read"):
        load_text_encoder(qwen2, TOKENS)


def test_values_that_are_not_numbers_are_refused(t5: Path) -> None:
    def broken(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["encoder.final_layer_norm.weight"][3] = torch.nan
        return tensors

    rewritten(t5, broken)
    with pytest.raises(InputError, match=r"not finite floats in encoder\.final_layer_norm\.weight"):
        load_text_encoder(t5, TOKENS)


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"d_model": 48}, r"misshapen: .*shared\.weight \(272, 32\), not \(272, 48\)"),
        ({"num_layers": 3}, "missing: encoder.block.2"),
        ({"num_layers": 1}, "unexpected: encoder.block.1"),
        ({"num_heads": 0}, "heads 0"),
        ({"num_heads": "four"}, r"config\.json cannot be read"),
        ({"relative_attention_num_buckets": 2}, "2 buckets up to a distance of 128"),
        ({"dense_act_fn": "tanh"}, "activation 'tanh'"),
        ({"model_type": "bert"}, "'bert' model: text encoders are 't5', 'qwen2' and 'qwen2_vl'"),
        ({"vocab_size": 100}, "ids up to 1[0-9]+ and the encoder 100 rows"),
        ({"system_prompt": "Describe"}, "only a language model reads one"),
        ({"system_prompt": ["Describe"]}, "should be a text"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(entries: dict[str, Any], words: str, t5: Path) -> None:
    change(t5 / "config.json", **entries)
    with pytest.raises(InputError, match=words):
        load_text_encoder(t5, TOKENS)


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"num_key_value_heads": 3}, "4 heads of 8 over 3 key heads"),
        ({"use_sliding_window": True, "sliding_window": 8}, "a sliding window"),
        ({"hidden_act": "relu"}, "another activation"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "scaled rotary positions"),
    ],
)
def test_a_language_model_that_is_another_is_refused(entries: dict[str, Any], words: str, qwen2: Path) -> None:
    change(qwen2 / "config.json", **entries)
    with pytest.raises(InputError, match=words):
        load_text_encoder(qwen2, TOKENS)


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"padding_side": "left"}, "pads on the side 'left'"),
        ({"pad_token": None}, "names no padding token"),
        ({"pad_token": "<nothing>"}, "names no padding token"),
    ],
)
def test_a_tokenizer_that_pads_otherwise_is_refused(entries: dict[str, Any], words: str, qwen2: Path) -> None:
    change(qwen2 / "tokenizer_config.json", **entries)
    with pytest.raises(InputError, match=words):
        load_text_encoder(qwen2, TOKENS)


def test_a_padding_token_may_be_described(qwen2: Path) -> None:
    change(qwen2 / "tokenizer_config.json", pad_token={"content": "<|endoftext|>", "special": True})
    assert load_text_encoder(qwen2, TOKENS).tokenizer


def test_a_system_prompt_longer_than_a_prompt_may_be_is_refused(qwen2: Path) -> None:
    with pytest.raises(InputError, match=r"has \d+ tokens and .* 24"):
        load_text_encoder(qwen2, TOKENS, "a golden window " * 20)


@pytest.mark.parametrize("tokens", [0, 1, -3, 2.5, True, "8"])
def test_an_odd_length_is_refused(tokens: Any, t5: Path) -> None:
    with pytest.raises(InputError, match="a whole number of tokens above 1"):
        load_text_encoder(t5, tokens)


def test_the_missing_package_is_named(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'nextscale\[text-export\]'"):
        load_text_encoder(t5, TOKENS)


def test_another_width_than_the_model_reads_is_refused(t5: Path) -> None:
    assert load_text_encoder(t5, TOKENS, width=32).encoder.width == 32
    with pytest.raises(InputError, match="features 32 wide and the model reads 2048"):
        load_text_encoder(t5, TOKENS, width=2048)


def test_only_a_sentencepiece_file_needs_sentencepiece(t5: Path, qwen2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    assert load_text_encoder(qwen2, TOKENS).tokenizer
    with pytest.raises(EnvironmentProblem, match=r"spiece\.model is read with the package sentencepiece"):
        load_text_encoder(t5, TOKENS)
