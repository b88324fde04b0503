"""Text encoders: what their graphs compute is what transformers computes, of ids that are transformers' ids."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from support.text import (
    PROMPTS,
    TOKENS,
    computing_on_weights_alone,
    nodes_of,
    run_text_graph,
    sentences,
    write_qwen2,
    write_t5,
    write_text_graph,
)

from nextscale.export.text import LoadedText, load_text_encoder, write_tokenizer
from nextscale.export.text_graph import text_names, text_tensors
from nextscale.export.text_t5 import bucket_of
from nextscale.export.text_verify import PROMPTS as VERIFIED
from nextscale.export.text_verify import reference_features, verify_text
from nextscale.plan.errors import ParityError
from nextscale.runtime.text import TextTokenizer

SYSTEM = "A bright castle, at dusk: "
WRITERS: dict[str, Callable[[Path], Path]] = {
    "t5": write_t5,
    "qwen2": write_qwen2,
    "qwen2_vl": lambda folder: write_qwen2(folder, "qwen2_vl"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A published folder of each kind; no test may change one."""
    root = tmp_path_factory.mktemp("encoders")
    return {kind: write(root / kind) for kind, write in WRITERS.items()}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, LoadedText]:
    """Language models with a system prompt, as HART has it."""
    return {kind: load_text_encoder(f, TOKENS, None if kind == "t5" else SYSTEM) for kind, f in folders.items()}


@pytest.fixture(scope="module")
def graphs(loaded: dict[str, LoadedText], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Their graphs, traced without weights and composed."""
    root = tmp_path_factory.mktemp("graphs")
    return {kind: write_text_graph(text.encoder, root / kind) for kind, text in loaded.items()}


def reference(folder: Path) -> Any:
    """transformers' own model, found by its own rules."""
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    return getattr(model, "language_model", getattr(model, "encoder", model))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_graph_computes_what_transformers_does_for_each_prompt_alone(
    kind: str, folders: dict[str, Path], loaded: dict[str, LoadedText], graphs: dict[str, Path]
) -> None:
    """The reference sees one prompt without any padding; the graph a batch of several lengths."""
    ids, length = TextTokenizer(loaded[kind].tokenizer).ids_of(PROMPTS)
    features = run_text_graph(graphs[kind], ids, length)
    assert features.shape == (len(PROMPTS), TOKENS, 32)
    assert len({*length.tolist()}) == len(PROMPTS)
    model, prefix = reference(folders[kind]), list(loaded[kind].encoder.prefix)
    assert bool(prefix) == (kind != "t5")
    for row, count in enumerate(length.tolist()):
        alone = torch.tensor([[*prefix, *ids[row, :count].tolist()]])
        with torch.inference_mode():
            wanted = model(input_ids=alone).last_hidden_state[0, len(prefix) :].numpy()
        np.testing.assert_allclose(features[row, :count], wanted, rtol=0, atol=1e-4 * max(1.0, features.std()))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_graph_is_proved(kind: str, loaded: dict[str, LoadedText], graphs: dict[str, Path]) -> None:
    """Padding's features included, which HART reads."""
    onnx.checker.check_model(graphs[kind])
    assert 0 < verify_text(graphs[kind], loaded[kind]).max_error < 5e-5


@pytest.mark.parametrize("kind", WRITERS)
def test_a_prompt_does_not_depend_on_its_batch(
    kind: str, loaded: dict[str, LoadedText], graphs: dict[str, Path]
) -> None:
    ids, length = TextTokenizer(loaded[kind].tokenizer).ids_of(PROMPTS)
    together = run_text_graph(graphs[kind], ids, length)
    alone = run_text_graph(graphs[kind], ids[2:3], length[2:3])
    np.testing.assert_allclose(alone[0], together[2], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", WRITERS)
def test_no_token_sees_what_is_behind_its_prompt(
    kind: str, loaded: dict[str, LoadedText], graphs: dict[str, Path]
) -> None:
    ids, length = TextTokenizer(loaded[kind].tokenizer).ids_of(PROMPTS)
    other = ids.copy()
    for row, count in enumerate(length):
        other[row, count:] = 7
    first, second = (run_text_graph(graphs[kind], i, length) for i in (ids, other))
    for row, count in enumerate(length):
        np.testing.assert_array_equal(first[row, :count], second[row, :count])
        assert not np.array_equal(first[row, count:], second[row, count:])


@pytest.mark.parametrize("kind", WRITERS)
def test_no_node_computes_on_a_weight_alone(kind: str, graphs: dict[str, Path]) -> None:
    assert computing_on_weights_alone(graphs[kind]) == []
    products = [node for node in nodes_of(graphs[kind]) if node.op_type == "Gemm"]
    assert len(products) == 14  # seven matrices in each of two blocks
    for node in products:
        assert {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} == {"transB": 1}
    assert {node.domain for node in nodes_of(graphs[kind])} == {""}  # any backend knows its operators


def test_weights_keep_their_keys(
    folders: dict[str, Path], loaded: dict[str, LoadedText], graphs: dict[str, Path]
) -> None:
    from safetensors.torch import load_file

    used = {t.name for t in onnx.load_model(graphs["t5"], load_external_data=False).graph.initializer}
    published = load_file(folders["t5"] / "model.safetensors")
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert {n for n in used if n.startswith("text/")} == {f"text/{key}" for key in published if key != bias}
    assert {n for n in used if n.startswith("derived/")} == {"derived/text/position_bias"}
    for name, tensor in text_tensors(used & {f"text/{key}" for key in published}, loaded["t5"].encoder).items():
        torch.testing.assert_close(tensor, published[name.removeprefix("text/")], rtol=0, atol=0)

    used = {t.name for t in onnx.load_model(graphs["qwen2_vl"], load_external_data=False).graph.initializer}
    derived = {f"derived/text/{name}" for name in ("prefix_embedding", "rope_cos", "rope_sin")}
    assert {n for n in used if n.startswith("derived/")} == derived
    own = load_file(folders["qwen2"] / "model.safetensors")
    assert {n for n in used if n.startswith("text/")} == {f"text/{key}" for key in own}
    assert text_names(["block.wi.weight"], "encoder.block.3") == {"block.wi.weight": "text/encoder.block.3.wi.weight"}


@given(st.integers(2, 700), st.sampled_from([(32, 128), (8, 20), (4, 9), (64, 512)]))
@settings(deadline=None, max_examples=30)
def test_buckets_of_distances_are_those_of_transformers(tokens: int, sizes: tuple[int, int]) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    place = torch.arange(tokens)
    distance = place[None, :] - place[:, None]
    wanted = T5Attention._relative_position_bucket(distance, True, *sizes)
    assert torch.equal(bucket_of(distance, *sizes), wanted)


@pytest.mark.parametrize("projection", ["relu", "gated-silu", "gelu"])
def test_other_feed_forwards_of_t5(projection: str, tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "t5", feed_forward_proj=projection, d_kv=12, relative_attention_num_buckets=8)
    _same_as_transformers(load_text_encoder(folder, TOKENS))


def test_a_language_model_without_a_system_prompt(folders: dict[str, Path]) -> None:
    """A prompt of no tokens included: its padding attends to nothing, and is finite."""
    _same_as_transformers(load_text_encoder(folders["qwen2"], TOKENS))


def test_the_system_prompt_may_stand_in_the_configuration(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["qwen2"], tmp_path / "with"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"system_prompt": SYSTEM}))
    told, asked = load_text_encoder(folder, TOKENS), load_text_encoder(folders["qwen2"], TOKENS, SYSTEM)
    assert told.encoder.prefix == asked.encoder.prefix
    assert len(told.encoder.prefix) > 3
    assert load_text_encoder(folder, TOKENS, "").encoder.prefix == ()


def test_half_precision_spares_what_leaves_its_range(loaded: dict[str, LoadedText], tmp_path: Path) -> None:
    half = copy.deepcopy(loaded["t5"].encoder).compute_in(torch.float16)
    kept = {name for name, p in half.named_parameters() if p.dtype == torch.float32}
    assert kept == {n for n in kept if n.endswith(("wo.weight", "layer_norm.weight", "attention_bias.weight"))}
    file = write_text_graph(half, tmp_path / "half")
    assert verify_text(file, loaded["t5"], half, tolerance=5e-2).max_error > 0
    ids, length = TextTokenizer(loaded["t5"].tokenizer).ids_of(PROMPTS)
    full = loaded["t5"].encoder(torch.from_numpy(ids), torch.from_numpy(length)).numpy()
    assert np.abs(run_text_graph(file, ids, length) - full).max() < 5e-2 * max(1.0, full.std())
    assert computing_on_weights_alone(file) == []


def test_a_graph_of_other_weights_is_found_out(
    loaded: dict[str, LoadedText], graphs: dict[str, Path], tmp_path: Path
) -> None:
    changed = copy.deepcopy(loaded["t5"])
    with torch.no_grad():
        changed.encoder.get_parameter("encoder.block.1.layer.1.DenseReluDense.wo.weight")[0, 0] += 0.5
    with pytest.raises(ParityError, match="differs from transformers' own"):
        verify_text(graphs["t5"], changed)
    with pytest.raises(ParityError, match=r"text\.onnx differs from the eager text encoder"):
        verify_text(write_text_graph(changed.encoder, tmp_path / "changed"), loaded["t5"])


def _same_as_transformers(loaded: LoadedText) -> None:
    ids, length = (torch.from_numpy(a) for a in TextTokenizer(loaded.tokenizer).ids_of(VERIFIED, truncate=True))
    with torch.inference_mode():
        features, wanted = loaded.encoder(ids, length), reference_features(loaded, ids, length)
    torch.testing.assert_close(features, wanted, rtol=0, atol=1e-4 * max(1.0, wanted.std().item()))


PROMPT = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(sentences(20)), max_size=4).map("  ".join))


@pytest.mark.parametrize("kind", ["t5", "qwen2"])
def test_ids_are_those_of_transformers(kind: str, folders: dict[str, Path], loaded: dict[str, LoadedText]) -> None:
    """Cut off at the limit, and whole."""
    theirs = transformers.AutoTokenizer.from_pretrained(folders[kind], local_files_only=True)
    ours = TextTokenizer(loaded[kind].tokenizer)

    @given(PROMPT)
    @settings(deadline=None, max_examples=150)
    def check(prompt: str) -> None:
        wanted = theirs(prompt, truncation=True, max_length=TOKENS, padding="max_length")
        ids, length = ours.ids_of([prompt], truncate=True)
        assert ids[0].tolist() == wanted["input_ids"]
        assert length[0] == sum(wanted["attention_mask"])

    check()


def test_ids_are_those_of_sentencepiece(folders: dict[str, Path], loaded: dict[str, LoadedText]) -> None:
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folders["t5"] / "spiece.model"))
    whole = TextTokenizer(load_text_encoder(folders["t5"], 200).tokenizer)
    for prompt in (*sentences(50), "", "Über die Brücke, ein Café", "漢字"):
        ids, length = whole.ids_of([prompt])
        assert ids[0, : length[0]].tolist() == [*pieces.encode(prompt), 1]
        assert set(ids[0, length[0] :].tolist()) <= {0}


def test_the_tokenizer_is_one_file_that_says_how_it_pads(loaded: dict[str, LoadedText], tmp_path: Path) -> None:
    write_tokenizer(loaded["qwen2"], tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["padding"]["strategy"] == {"Fixed": TOKENS}
    assert saved["padding"]["direction"] == "Right"
    assert saved["truncation"] is None


def test_the_same_folder_gives_the_same_file(folders: dict[str, Path], loaded: dict[str, LoadedText]) -> None:
    assert load_text_encoder(folders["t5"], TOKENS).tokenizer == loaded["t5"].tokenizer
