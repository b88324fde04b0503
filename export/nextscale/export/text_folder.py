"""Reading the folder of a published text encoder: its sizes and its weights, without running its code.

``transformers`` reads ``config.json``; tensors are read as those of every checkpoint here.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from nextscale.export.shards import INDEXES
from nextscale.export.state_dict import load_strictly, open_state
from nextscale.export.text_encoder import TextEncoder
from nextscale.export.text_qwen2 import Qwen2Encoder, Qwen2Sizes
from nextscale.export.text_t5 import ACTIVATIONS, T5Encoder, T5Sizes
from nextscale.plan.errors import InputError
from nextscale.runtime.packages import imported

Sizes = T5Sizes | Qwen2Sizes
CONFIG_FILE = "config.json"
WEIGHTS = ("model.safetensors", INDEXES[0], "pytorch_model.bin", INDEXES[1])
# What stands before the encoder's own keys in files of whole models, the longest first.
LANGUAGE_MODELS = ("model.language_model.", "language_model.", "model.")
TIED = "encoder.embed_tokens.weight"  # T5 files hold the one table under this name, as shared.weight, or twice
# Parts of whole models that no prompt goes through, and buffers of old files.
BESIDE = (TIED, "decoder.", "visual.", "model.visual.", "lm_head.weight", "rotary_emb.inv_freq")


def import_transformers() -> ModuleType:
    """The module; raises :class:`EnvironmentProblem` saying how to install it."""
    return imported("transformers", "a text encoder is read with", "pip install 'nextscale[text-export]'")


def read_config(folder: Path) -> Any:
    """The folder's configuration as transformers has it; no code of the folder is run."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"no text encoder at {folder}: give a folder with {CONFIG_FILE}, weights and a tokenizer")
    transformers = import_transformers()
    strict = importlib.import_module("huggingface_hub.errors").StrictDataclassError
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (strict, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be read as the configuration of a text encoder ({first_line(error)}): fetch it again"
        ) from error


def sizes_of(config: Any, path: Path) -> Sizes:
    """The numbers of a T5 encoder or of a Qwen2 language model; :class:`InputError` for any other model."""
    kind = config.model_type
    if kind == "t5":
        if config.dense_act_fn not in ACTIVATIONS:
            raise InputError(
                f"{path} has the activation {config.dense_act_fn!r}: it is none of {', '.join(ACTIVATIONS)}"
            )
        return _sound(
            T5Sizes(
                vocabulary=config.vocab_size,
                width=config.d_model,
                depth=config.num_layers,
                heads=config.num_heads,
                head_dim=config.d_kv,
                ffn_width=config.d_ff,
                buckets=config.relative_attention_num_buckets,
                max_distance=config.relative_attention_max_distance,
                activation=config.dense_act_fn,
                gated=config.is_gated_act,
                eps=float(config.layer_norm_epsilon),
            ),
            path,
        )
    if kind not in ("qwen2", "qwen2_vl", "qwen2_vl_text"):
        raise InputError(f"{path} is of a {kind!r} model: text encoders are 't5', 'qwen2' and 'qwen2_vl'")
    config = getattr(config, "text_config", config)
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default" or config.hidden_act != "silu" or config.sliding_window:
        raise InputError(
            f"{path} asks for scaled rotary positions, a sliding window or another activation than silu, "
            "which no published text encoder of these models has"
        )
    heads = config.num_attention_heads
    return _sound(
        Qwen2Sizes(
            vocabulary=config.vocab_size,
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=heads,
            key_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1),
            ffn_width=config.intermediate_size,
            theta=float(rope["rope_theta"]),
            eps=float(config.rms_norm_eps),
        ),
        path,
    )


def _sound(sizes: Sizes, path: Path) -> Sizes:
    """Sizes that modules can be made of."""
    odd = [f"{name} {value!r}" for name, value in vars(sizes).items() if type(value) in (int, float) and value <= 0]
    if isinstance(sizes, Qwen2Sizes) and not odd and (sizes.heads % sizes.key_heads or sizes.head_dim % 2):
        odd = [f"{sizes.heads} heads of {sizes.head_dim} over {sizes.key_heads} key heads"]
    if isinstance(sizes, T5Sizes) and not odd and not 4 <= sizes.buckets < 4 * sizes.max_distance:
        odd = [f"{sizes.buckets} buckets up to a distance of {sizes.max_distance}"]
    if odd:
        raise InputError(f"{path} has {', '.join(odd)}, of which no encoder can be made: mend it or fetch it again")
    return sizes


def encoder_of(sizes: Sizes, tokens: int, prefix: tuple[int, ...] = ()) -> TextEncoder:
    """The module for such sizes, its weights not loaded."""
    if isinstance(sizes, T5Sizes):
        return T5Encoder(sizes, tokens, prefix)
    return Qwen2Encoder(sizes, tokens, prefix)


def load_weights(encoder: nn.Module, path: Path) -> None:
    """Gives an encoder, made on the meta device, the tensors of a file or a folder of shards; strictly, as float32."""
    state = open_state(path, "text")
    before = next((p for p in LANGUAGE_MODELS if f"{p}embed_tokens.weight" in state), "")
    own = {key.removeprefix(before): entry for key, entry in state.items()}
    if TIED in own:
        own.setdefault("shared.weight", own[TIED])
    load_strictly(encoder, own, path, BESIDE)


def weights_of(folder: Path) -> Path:
    """The file of the weights, or the folder where they lie in shards; safetensors before PyTorch's own form."""
    found = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise InputError(
            f"{folder} has no weights: {', '.join(WEIGHTS[:2])} or {WEIGHTS[2]} belongs beside {CONFIG_FILE}"
        )
    return folder if found in INDEXES else folder / found


def first_line(error: Exception) -> str:
    """What an exception says, as part of a sentence."""
    return " ".join(str(error).split())[:200] or type(error).__name__
