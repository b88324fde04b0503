"""Drawn checkpoints of Infinity and HART: upstream's names and layouts, shards, half precision, streaming."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny

from nextscale.export import draw
from nextscale.export.checkpoint import load_checkpoint
from nextscale.export.eager import Eager, Request
from nextscale.export.lazy import Lazy
from nextscale.export.published import published_stems
from nextscale.export.safetensors_file import header_of
from nextscale.export.shards import write_folder
from nextscale.export.state_dict import open_state, read_state
from nextscale.plan.families.hart import hart_model
from nextscale.plan.families.infinity import infinity_model
from nextscale.plan.recipes import plan_for, recipe, var_model
from nextscale.plan.types import Diffusion, Model, Sampling, Text, Tokenizer

BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")


INFINITY = replace(infinity_model(4, 128, heads=2, chunks=2, bits=8, text=Text(tokens=12, width=256)), rope_grid=(4, 4))
BITS = Tokenizer(32, (1, 2), 1, 8, 2, 2, phi=0, codebook=False, attention=False)
HART = hart_model(2, 64, 2, Text(5, 24, "prefix"), Diffusion(32, 2), vocabulary=64)
PATCHES = replace(BITS, code_channels=14, stride=8, patch=2)
PLACES: dict[str, tuple[Model, Tokenizer, list[str]]] = {
    "VAR": (var_model(16), recipe("var-d16").tokenizer, ["var_d16", "vae_ch160v4096z32"]),
    "Infinity 125M": (
        infinity_model(12, 768, 8, 4),
        replace(BITS, code_channels=16),
        ["infinity_layer12", "infinity_vae_d16"],
    ),
    "Infinity 2B": (
        infinity_model(32, 2048, 16, 8),
        replace(BITS, code_channels=32),
        ["infinity_2b_reg", "infinity_vae_d32reg"],
    ),
    "Infinity 8B": (
        infinity_model(40, 3584, 28, 8),
        PATCHES,
        ["infinity_8b_weights", "infinity_vae_d56_f8_14_patchify"],
    ),
    "HART": (HART, recipe("var-d16").tokenizer, ["llm", "tokenizer"]),
}


@pytest.mark.parametrize(("model", "tokenizer", "stems"), PLACES.values(), ids=PLACES)
def test_the_names_that_upstream_gives(model: Model, tokenizer: Tokenizer, stems: list[str]) -> None:
    assert list(published_stems(model, tokenizer)) == stems


@pytest.mark.parametrize("form", draw.FORMATS)
@pytest.mark.parametrize(
    ("model", "tokenizer", "names"),
    [
        (INFINITY, BITS, ["infinity_layer4.{form}", "infinity_vae_d8.{form}"]),
        (HART, tiny.TOKENIZER, ["llm", "tokenizer"]),
    ],
    ids=["Infinity", "HART"],
)
def test_a_drawn_checkpoint_of_another_family(
    model: Model, tokenizer: Tokenizer, names: list[str], form: str, tmp_path: Path
) -> None:
    files = draw.draw_checkpoint(model, tokenizer, tiny.SCHEDULE, tmp_path, form=form)
    assert [path.name for path in files] == [name.format(form=form) for name in names]
    shapes = draw.transformer_shapes(model, tiny.SCHEDULE), draw.tokenizer_shapes(tokenizer, len(tiny.SCHEDULE))
    for path, part, wanted in zip(files, ("var", "vae"), shapes, strict=True):
        found = open_state(path, part)
        assert {k: (t.shape, t.dtype) for k, t in found.items()} == {k: (t.shape, t.dtype) for k, t in wanted.items()}
    pictures = read_state(files[1], "vae")
    if not tokenizer.codebook:
        assert pictures["quantizer.lfq.mask"].tolist() == [128, 64, 32, 16, 8, 4, 2, 1]
    weights = {key: tensor for key, tensor in read_state(files[0], "var").items() if not key.endswith(BUFFERS)}
    assert all(0 < tensor.std() < 4 for tensor in weights.values() if tensor.numel() > 2)


def test_infinity_s_logits_and_pictures_are_sane(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(*draw.draw_checkpoint(INFINITY, BITS, tiny.SCHEDULE, tmp_path), usual=tiny.SCHEDULE)
    chosen = recipe("infinity-125m-0.25m")
    plan = plan_for(chosen, checkpoint.model, checkpoint.tokenizer, tiny.SCHEDULE, Sampling(top_k=0))
    text = np.random.default_rng(0).standard_normal((7, 256), np.float32)
    request = Request([text, text[:3]], guidance_scale=1.0)
    pictures, steps = Eager(plan, checkpoint.var, checkpoint.vae).generate(request)
    for step in steps:
        assert 1.0 < float(step.prediction.logits.std()) < 5.0
    assert 0.1 < pictures.std() < 0.45


def test_upstreams_own_layouts(tmp_path: Path) -> None:
    _, vae = draw.draw_checkpoint(INFINITY, BITS, tiny.SCHEDULE, tmp_path / "infinity")
    assert list(torch.load(vae)) == ["vae"]
    llm, pictures = draw.draw_checkpoint(HART, tiny.TOKENIZER, tiny.SCHEDULE, tmp_path / "hart")
    assert all(key.startswith("vae.") for key in header_of(pictures / "model.safetensors")[1])
    assert "word_embed.weight" in header_of(llm / "model.safetensors")[1]


def test_blocks_in_half_precision(tmp_path: Path) -> None:
    full, half = (tmp_path / name for name in ("full", "half"))
    paths = [
        draw.draw_checkpoint(INFINITY, BITS, tiny.SCHEDULE, folder, form="safetensors", dtype=dtype)[0]
        for folder, dtype in ((full, torch.float32), (half, torch.bfloat16))
    ]
    wanted, found = (read_state(path, "var") for path in paths)
    for key, tensor in found.items():
        assert tensor.dtype == (torch.bfloat16 if key.startswith("block_chunks.") else torch.float32)
        assert torch.equal(tensor, wanted[key].to(tensor.dtype))


def test_shards_of_a_folder(tmp_path: Path) -> None:
    tensors = {f"a.{i}": torch.full((n,), float(i)) for i, n in enumerate((10, 20, 100, 5, 20))}
    write_folder(tmp_path / "shards", {key: Lazy.of(tensor) for key, tensor in tensors.items()}, limit=120)
    names = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(p.name for p in (tmp_path / "shards").iterdir()) == [*names, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"] == {"total_size": 4 * 155}
    assert [index["weight_map"][key] for key in tensors] == [names[i] for i in (0, 0, 1, 2, 2)]
    found = read_state(tmp_path / "shards", "var")
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def test_safetensors_are_drawn_while_they_are_written(tmp_path: Path) -> None:
    """What was made is gone when the next begins; ``.pth`` is PyTorch's own writer, which wants all."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def watch(seed: int, name: str, shape: tuple[int, ...], rules: Any) -> torch.Tensor:
        nonlocal most
        tensor = torch.zeros(shape)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw, "draw", watch)
        tiny.draw_tiny(tmp_path / "a", form="safetensors")
        assert most == 1
        tiny.draw_tiny(tmp_path / "b", form="pth")
        assert most > 20
