"""Small text encoders in folders as they are published, with drawn weights, and the graphs that they become."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

TOKENS = 24
TRACED: dict[Any, Any] = {}  # pieces of this process
PROMPTS = ("", "a cat", "A small red seven.", "the golden river")  # several lengths, all below the limit


def sentences(count: int = 400) -> list[str]:
    """What the tokenizers are trained on."""
    draw = random.Random(0)
    things = ("cat", "dog", "lighthouse", "seven", "gradient", "astronaut", "castle", "river", "mountain", "window")
    kinds = ("small", "red", "fluffy", "bright", "green", "ancient", "melting", "neon", "quiet", "giant", "golden")
    places = ("sleeping on", "riding", "painted over", "standing near", "flying above", "rotated beside")
    return [
        f"{draw.choice(('A', 'The', 'One'))} {draw.choice(kinds)} {draw.choice(things)} {draw.choice(places)} "
        f"the {draw.choice(kinds)} {draw.choice(things)}{draw.choice(('.', '!', ', at dusk.', ' 1234'))}"
        for _ in range(count)
    ]


def write_sentencepiece(path: Path) -> None:
    """A unigram model with T5's special ids, trained here."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        vocab_size=160,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def write_t5(folder: Path, seed: int = 0, encoder_only: bool = True, **changes: Any) -> Path:
    """A two-block encoder of flan-t5's kind, as transformers saves it, with ``spiece.model``."""
    from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

    sizes = {"vocab_size": 272, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = T5Config(**{**sizes, "feed_forward_proj": "gated-gelu", "pad_token_id": 0, **changes})
    model = T5EncoderModel(config) if encoder_only else T5ForConditionalGeneration(config)
    _save(model, folder, seed)
    write_sentencepiece(folder / "spiece.model")
    return folder


def write_qwen2(folder: Path, kind: str = "qwen2", seed: int = 0, **changes: Any) -> Path:
    """A two-block language model: 4 heads on 2 key heads; ``qwen2_vl`` lies beside a small vision model in its file."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": None,
        **changes,
    }
    if kind == "qwen2":
        model = transformers.Qwen2Model(transformers.Qwen2Config(**sizes, rope_theta=1e4))
    else:
        rope = {"type": "mrope", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
        vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
        config = transformers.Qwen2VLConfig(text_config={**sizes, "rope_parameters": rope}, vision_config=vision)
        model = transformers.Qwen2VLForConditionalGeneration(config)
    _save(model, folder, seed)
    write_bpe(folder)
    return folder


def write_bpe(folder: Path) -> None:
    """A byte-level BPE ``tokenizer.json`` as Qwen2's is, trained here, and the settings beside it."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<|endoftext|>", "padding_side": "right"}')


def _save(model: Any, folder: Path, seed: int) -> None:
    """Weights of a size that lets every part matter, saved as transformers does."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.ndim > 1 else 0.1
            norm = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(norm + spread * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(folder)


def write_text_graph(encoder: Any, folder: Path) -> Path:
    """Traces, composes and writes ``text.onnx`` of an encoder in its precision, with its weights file."""
    from nextscale.export.text_graph import text_graph, text_tensors
    from nextscale.export.weights import write_weights
    from nextscale.runtime.manifest import IMAGES, Graph, Tensor

    tokens, width = encoder.tokens, encoder.width
    inputs = (
        Tensor("ids.in", "int32", (IMAGES, tokens), "ids", 0, "read", "ids"),
        Tensor("length.in", "int32", (IMAGES,), "length", 0, "read", "length"),
    )
    outputs = (Tensor("text.out", "float32", (IMAGES, tokens, width), "features", 0, "replace"),)
    composer = text_graph(encoder, Graph("text", "text.onnx", None, inputs, outputs), TRACED)
    folder.mkdir(exist_ok=True)
    references = write_weights(text_tensors(composer.weights, encoder), folder)
    onnx.save_model(composer.model(references), folder / "text.onnx")
    return folder / "text.onnx"


def run_text_graph(file: Path, ids: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Features (n, T, width), by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    features: np.ndarray = session.run(["text.out"], {"ids.in": ids, "length.in": length})[0]
    return features


def computing_on_weights_alone(file: Path) -> list[str]:
    """Nodes of a graph all of whose inputs come from weights and constants, at least one of them from a weight."""
    model = onnx.load_model(file, load_external_data=False)
    weights = {t.name for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    fixed = {t.name for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        if all(name in fixed for name in inputs):
            fixed.update(node.output)
            if weights & set(inputs):
                found.append(node.name)
                weights.update(node.output)
    return found


def nodes_of(file: Path) -> Sequence[onnx.NodeProto]:
    """The nodes of a written graph."""
    return list(onnx.load_model(file, load_external_data=False).graph.node)
