"""Infinity's state dict: published keys and shapes, and how many weights each size has (the sheet, 2.1 and 2.5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.drawn_infinity import (
    MODEL,
    SQUARE,
)

from nextscale.export.models.infinity import Infinity
from nextscale.plan.families.infinity import INFINITY_SIZES, infinity_model
from nextscale.plan.schedules import schedule
from nextscale.plan.types import Model, Text


def test_a_wide_text_of_a_wider_model_has_heads_of_half_the_size() -> None:
    with torch.device("meta"):
        heads = [
            Infinity(replace(MODEL, width=width, text=Text(6, 2048)), SQUARE).get_parameter(
                "text_proj_for_sos.ca.mat_q"
            )
            for width in (4096, 4608)
        ]
    assert [q.shape[1] for q in heads] == [16, 32]


def published(model: Model, d_vae: int, per_chunk: int, heads_of_pool: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The table of the sheet's section 2.5, without its buffers, for Ct5 = 2048."""
    c, ffn, ct5 = model.width, model.ffn_width, 2048
    yield "cfg_uncond", (512, ct5)
    yield "pos_start", (1, 1, c)
    yield "text_norm.weight", (ct5,)
    yield "text_proj_for_sos.ca.mat_q", (1, heads_of_pool, c // heads_of_pool)
    yield "text_proj_for_sos.ca.v_bias", (c,)
    yield "text_proj_for_sos.ca.mat_kv.weight", (2 * c, ct5)
    yield from linear("text_proj_for_sos.ca.proj", c, c)
    yield from linear("text_proj_for_ca.0", c, ct5)
    yield from linear("text_proj_for_ca.2", c, c)
    yield "lvl_embed.weight", (15, c)
    yield from linear("word_embed", c, d_vae)
    yield from linear("shared_ada_lin.1", 6 * c, c)
    yield from linear("head_nm.ada_lin.1", 2 * c, c)
    yield from linear("head", 2 * d_vae, c)
    for layer in range(model.depth):
        block = f"block_chunks.{layer // per_chunk}.module.{layer % per_chunk}"
        yield f"{block}.ada_gss", (1, 1, 6, c)
        yield f"{block}.sa.scale_mul_1H11", (1, model.heads, 1, 1)
        yield f"{block}.sa.q_bias", (c,)
        yield f"{block}.sa.v_bias", (c,)
        yield f"{block}.sa.mat_qkv.weight", (3 * c, c)
        yield from linear(f"{block}.sa.proj", c, c)
        yield f"{block}.ca.v_bias", (c,)
        yield from linear(f"{block}.ca.mat_q", c, c)
        yield f"{block}.ca.mat_kv.weight", (2 * c, c)
        yield from linear(f"{block}.ca.proj", c, c)
        yield from linear(f"{block}.ffn.fc1", ffn, c)
        yield from linear(f"{block}.ffn.fc2", c, ffn)
        yield f"{block}.ca_norm.weight", (c,)
        yield f"{block}.ca_norm.bias", (c,)


def linear(name: str, c_out: int, c_in: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (c_out, c_in)
    yield f"{name}.bias", (c_out,)


@pytest.mark.parametrize(("size", "bits", "per_chunk"), [("2b", 32, 4), ("8b", 56, 5), ("layer12", 32, 3)])
def test_the_published_keys_and_shapes(size: str, bits: int, per_chunk: int) -> None:
    model = infinity_model(*INFINITY_SIZES[size], bits=bits)
    with torch.device("meta"):
        var = Infinity(model, schedule("infinity-1m"))
    state = {key: tuple(t.shape) for key, t in var.state_dict().items()}
    assert state == dict(published(model, bits, per_chunk, 16))


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
def test_every_size_has_its_published_number_of_parameters(size: str, millions: float) -> None:
    with torch.device("meta"):
        var = Infinity(infinity_model(*INFINITY_SIZES[size], bits=56 if size == "8b" else 32), schedule("infinity-1m"))
    assert sum(p.numel() for p in var.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
