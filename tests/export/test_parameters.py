"""Weights that are read, folded and cast when asked for are those of a model that is loaded, folded and cast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support import tiny
from torch import Tensor, nn

from nextscale.export.components import compute_in
from nextscale.export.draw import VAE_RULES, VAR_RULES, drawn, tokenizer_shapes, transformer_shapes
from nextscale.export.families import tokenizer_model, transformer
from nextscale.export.lazy import Lazy
from nextscale.export.models.contract import Derived
from nextscale.export.parameters import Parameters
from nextscale.export.state_dict import fitting, load_strictly
from nextscale.export.trace import without_weights
from nextscale.plan.errors import InputError
from nextscale.plan.families.hart import hart_model
from nextscale.plan.families.infinity import infinity_model
from nextscale.plan.families.var import var_model
from nextscale.plan.types import Diffusion, Model, Text, Tokenizer

MODELS: dict[str, Model] = {
    "VAR": tiny.MODEL,
    "VAR with shared adaLN": var_model(2, 64, heads=4, classes=3, vocabulary=16, shared_adaln=True, qk_norm=False),
    "Infinity": replace(
        infinity_model(4, 128, heads=2, chunks=2, bits=8, text=Text(tokens=12, width=256)), rope_grid=(4, 4)
    ),
    "HART": hart_model(2, 64, 2, Text(5, 24, "prefix"), Diffusion(32, 2), vocabulary=16, code_channels=8),
    "HART with a table": hart_model(
        2, 64, 2, Text(5, 24, "prefix"), Diffusion(32, 2), 16, 8, qk_norm=True, level_mlp=False
    ),
}
BITS = Tokenizer(32, (1, 2), 1, 8, 2, 2, phi=0, codebook=False, attention=False)
TOKENIZERS: dict[str, Tokenizer] = {"VQVAE": tiny.TOKENIZER, "BSQVAE": BITS}
IGNORED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "lfq.mask")
FILE = Path("file")


def part_of(name: str) -> tuple[str, dict[str, Lazy], Any]:
    """The weight set, a drawn state and what makes an empty model."""
    if name in MODELS:
        shapes = transformer_shapes(MODELS[name], tiny.SCHEDULE)
        return "var", drawn(shapes, "var:", VAR_RULES, 0), lambda: transformer(MODELS[name], tiny.SCHEDULE)
    shapes = tokenizer_shapes(TOKENIZERS[name], 4)
    return "vae", drawn(shapes, "vae:", VAE_RULES, 0), lambda: tokenizer_model(TOKENIZERS[name], 4)


def graphs_own(part: str, model: Any, dtype: torch.dtype) -> Any:
    """A model folded and cast, as graphs have it; the other part is any."""
    with torch.device("meta"):
        other = tokenizer_model(tiny.TOKENIZER, 4) if part == "var" else transformer(tiny.MODEL, tiny.SCHEDULE)
    folded = model.fold()
    compute_in(*((folded, other) if part == "var" else (other, folded)), dtype)
    return folded


def named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*MODELS, *TOKENIZERS])
def test_every_weight_is_that_of_a_model_that_is_loaded(name: str, dtype: torch.dtype) -> None:
    part, state, make = part_of(name)
    with torch.device("meta"):
        loaded, empty = make(), make()
    load_strictly(loaded, state, FILE, IGNORED)
    wanted = graphs_own(part, loaded, dtype)
    with without_weights():
        final = graphs_own(part, make(), dtype)
    found = Parameters(empty, final, fitting(empty, state, FILE, IGNORED), FILE)
    names = [n for n, _ in named(wanted)]
    assert len(names) > len(empty.state_dict())  # there are derived ones
    for key, tensor in named(wanted):
        entry = found[key]
        assert (entry.shape, entry.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(entry.read(), tensor)
    assert all(t.is_meta for _, t in named(empty))  # it stays without weights


def counting(state: Mapping[str, Lazy], read: list[str]) -> dict[str, Lazy]:
    def counted(key: str, entry: Lazy) -> Lazy:
        def make() -> Tensor:
            read.append(key)
            return entry.read()

        return Lazy(entry.shape, entry.dtype, make)

    return {key: counted(key, entry) for key, entry in state.items()}


def test_only_what_a_weight_is_made_of_is_read() -> None:
    part, state, make = part_of("VAR")
    with torch.device("meta"):
        empty = make()
        final = graphs_own(part, make(), torch.bfloat16)
    read: list[str] = []
    found = Parameters(empty, final, fitting(empty, counting(state, read), FILE, IGNORED), FILE)
    lazy = [found[key] for key, _ in named(final)]
    assert sum(entry.nbytes for entry in lazy) > 100_000
    assert not read
    found["blocks.1.attn.mat_qkv.weight"].read()
    assert read == ["blocks.1.attn.mat_qkv.weight"]
    read.clear()
    found["blocks.1.attn.qkv_bias"].read()
    assert sorted(read) == [f"blocks.1.attn.{key}" for key in ("q_bias", "scale_mul_1H11", "v_bias")]
    found["blocks.1.attn.q_scale"].read()
    assert len(read) == 3  # the module was folded already
    read.clear()
    found["lvl_pos_02"].read()
    assert sorted(read) == ["lvl_embed.weight", "pos_1LC", "pos_start"]


@pytest.mark.parametrize("key", ["blocks.0.attn.q_bias", "head.weight"])
def test_values_that_are_not_finite_are_refused_when_they_are_read(key: str) -> None:
    part, state, make = part_of("VAR")
    state[key] = Lazy.of(torch.full(state[key].shape, torch.nan))
    with torch.device("meta"):
        empty = make()
        final = graphs_own(part, make(), torch.float32)
    found = Parameters(empty, final, fitting(empty, state, FILE, IGNORED), FILE)
    assert found["blocks.1.attn.qkv_bias"].read().isfinite().all()
    with pytest.raises(InputError, match=f"file holds values that are not finite floats in {key}: the checkpoint is"):
        found["blocks.0.attn.qkv_bias" if "q_bias" in key else key].read()


class Forgetful(nn.Module):
    """Folds what its ``DERIVED`` does not tell."""

    DERIVED: ClassVar = {"total": Derived("a + b", ("a",))}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.empty(2)), nn.Parameter(torch.empty(2))

    def fold(self) -> Forgetful:
        self.register_buffer("total", (self.a + self.b).detach(), persistent=False)
        return self


def test_a_source_that_is_not_told_is_no_silent_zero() -> None:
    with torch.device("meta"):
        empty, final = Forgetful(), Forgetful().fold()
    found: Any = Parameters(empty, final, {key: Lazy.of(torch.ones(2)) for key in "ab"}, FILE)  # type: ignore[arg-type]
    assert found["a"].read().tolist() == [1, 1]
    with pytest.raises(AssertionError, match="total is made of more than it tells"):
        found["total"].read()
