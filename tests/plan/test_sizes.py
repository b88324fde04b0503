"""Parameter counts against the fact sheet's table, and against every key of the recorded models, one for one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from nextscale.plan.families.hart import HART_TOKENIZER, hart_model
from nextscale.plan.families.infinity import (
    INFINITY_PATCH_TOKENIZER,
    INFINITY_SIZES,
    INFINITY_TOKENIZER,
    infinity_model,
)
from nextscale.plan.schedules import schedule
from nextscale.plan.sizes import (
    begin_parameters,
    decoder_parts,
    diffusion_parameters,
    model_parameters,
    quantizer_parameters,
    tokenizer_parameters,
)
from nextscale.plan.types import Diffusion, Text, Tokenizer

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("layer12", 125.2),
        ("layer16", 361.6),
        ("layer24", 940.9),
        ("2b", 2204.6),
        ("layer32", 2256.7),
        ("layer40", 4716.4),
        ("layer48", 8767.2),
        ("8b", 8375.8),
    ],
)
def test_every_infinity_has_the_parameters_of_the_sheet(size: str, millions: float) -> None:
    model = infinity_model(*INFINITY_SIZES[size], bits=56 if size == "8b" else 32)
    assert round(model_parameters(model, schedule("infinity-1m")) / 1e6, 1) == millions


def test_infinity_has_one_count_for_every_schedule() -> None:
    model = infinity_model(*INFINITY_SIZES["2b"])
    counts = {model_parameters(model, schedule(f"infinity-{pixels}")) for pixels in ("0.06m", "1m", "1m-0.75", "2k")}
    assert len(counts) == 1


def test_ffn_widths_round_half_to_even() -> None:
    widths = {size: infinity_model(*numbers).ffn_width for size, numbers in INFINITY_SIZES.items()}
    assert (widths["layer32"], widths["layer48"], widths["layer40"], widths["8b"]) == (8192, 13312, 10752, 14336)


def test_hart_and_its_residual_diffusion() -> None:
    model = hart_model()
    assert round(model_parameters(model, schedule("hart-1024")) / 1e9, 2) == 0.73
    assert round(diffusion_parameters(model) / 1e6, 1) == 36.6
    assert model.ffn_width == 4096


def keys(case: str) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """A recorded model's description, and the numbers of each of its keys by prefix."""
    info = json.loads((GOLDEN / case / "case.json").read_text(encoding="utf-8"))
    listed = info["weights"]["keys"]
    return info, {prefix: {key: math.prod(shape) for key, shape in of} for prefix, of in listed.items()}


def decoding(found: dict[str, int], prefix: str = "") -> int:
    """What decoding needs of a tokenizer's keys."""
    left = ("encoder.", "quant_conv.")
    return sum(size for key, size in found.items() if not key.removeprefix(prefix).startswith(left))


def test_every_key_of_a_recorded_infinity_is_counted() -> None:
    info, found = keys("infinity_025M")
    sizes = info["model"]
    model = infinity_model(sizes["depth"], sizes["embed_dim"], sizes["num_heads"], 2, text=Text(512, 256))
    assert model.ffn_width == sizes["ffn_hidden"]
    assert model.depth // model.chunks == sizes["blocks_per_chunk"]
    assert sum(found["infinity:"].values()) == model_parameters(model, schedule("infinity-0.25m"))
    tokenizer = Tokenizer(32, (1, 2, 4, 4, 4), 3, 32, 2, 16, 0, codebook=False, attention=False)
    assert decoding(found["vae:"]) == tokenizer_parameters(tokenizer, (32, 32))


def test_every_key_of_a_recorded_hart_is_counted() -> None:
    info, found = keys("hart_base")
    sizes = info["model"]
    text = Text(sizes["context_token"], sizes["context_dim"], "prefix")
    diffusion = Diffusion(sizes["diff_width"], sizes["diff_depth"])
    model = hart_model(2, 128, 2, text, diffusion, vocabulary=1024)
    assert model.ffn_width == sizes["ffn_hidden"]
    assert sum(found["hart:"].values()) == model_parameters(model, schedule("hart-1024"))
    tokenizer = Tokenizer(32, (1, 1, 2, 2, 4), 3, 32, 1024, 16)
    assert decoding(found["harttok:"], "vae.") == tokenizer_parameters(tokenizer, (64, 64))


def test_what_else_a_hart_may_have() -> None:
    """A table of levels, no norm of the text, attention with learned temperatures."""
    full, grids = hart_model(), schedule("hart-1024")
    plain = hart_model(qk_norm=True, level_mlp=False, text=Text(300, 1536, "prefix", norm=False))
    mlp = 256 * 1536 + 1536 + 1536 * 1536 + 1536
    assert model_parameters(plain, grids) == model_parameters(full, grids) - mlp + 14 * 1536 - 1536 + 24 * 24


def test_infinitys_decoders_have_neither_attention_nor_a_codebook() -> None:
    assert quantizer_parameters(INFINITY_TOKENIZER) == quantizer_parameters(INFINITY_PATCH_TOKENIZER) == 0
    assert quantizer_parameters(HART_TOKENIZER) == 4096 * 32 + 4 * (9 * 32 * 32 + 32)
    parts = [
        list(decoder_parts(t, g)) for t, g in ((INFINITY_TOKENIZER, (64, 64)), (INFINITY_PATCH_TOKENIZER, (128, 128)))
    ]
    assert [part[0].parameters for part in parts] == [9 * 32 * 512 + 512, 9 * 14 * 512 + 512]  # straight to the top
    assert [part[-1].items for part in parts] == [3 * 1024 * 1024] * 2
    blocks = 2 * (2 + 5 * 3) + 2  # middle and levels, two convolutions each, and two shortcuts
    assert [len(part) for part in parts] == [1 + blocks + 4 + 1, 1 + blocks - 2 * 3 + 3 + 1]


def test_keys_and_values_of_a_text_are_begins() -> None:
    """They are made once for a picture, so no step reads their weights."""
    model = infinity_model(*INFINITY_SIZES["2b"])
    c, text = 2048, 2048
    once = 6 * c * c + 6 * c + 32 * 6 * c + 2 * c * c + 2 * c  # adaLN of blocks and head
    start = c + 512 * text + text + (2 * c + 2 * c * text + c * c + c) + (text * c + c + c * c + c)
    assert begin_parameters(model) == once + start + 32 * (2 * c * c + c)
