"""Drawn checkpoints have exactly the published keys and shapes, and sane numbers at any depth."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

from nextscale.export import draw
from nextscale.export.checkpoint import load_checkpoint
from nextscale.export.eager import Eager, Request
from nextscale.export.state_dict import read_state
from nextscale.plan.errors import EnvironmentProblem, InputError
from nextscale.plan.recipes import RECIPES, plan_for, recipe, var_model
from nextscale.plan.types import Grid, Sampling

PARAMETERS = {16: 310_283_520, 20: 600_917_136, 24: 1_033_399_360, 30: 2_010_020_356, 36: 2_353_893_904}
BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")


def published_keys(depth: int, shared: bool) -> set[str]:
    """The table of the sheet's section 1.4."""
    keys = {"pos_start", "pos_1LC", "lvl_1L", "attn_bias_for_masking", "class_emb.weight", "lvl_embed.weight"}
    linear = ["word_embed", "head", "head_nm.ada_lin.1", *(["shared_ada_lin.1"] if shared else [])]
    for i in range(depth):
        block = f"blocks.{i}"
        keys |= {f"{block}.attn.{k}" for k in ("scale_mul_1H11", "q_bias", "v_bias", "zero_k_bias", "mat_qkv.weight")}
        keys |= {f"{block}.ada_gss"} if shared else set()
        linear += [f"{block}.{k}" for k in ("attn.proj", "ffn.fc1", "ffn.fc2", *([] if shared else ["ada_lin.1"]))]
    return keys | {f"{name}.{part}" for name in linear for part in ("weight", "bias")}


@pytest.mark.parametrize("depth", PARAMETERS)
def test_the_transformer_has_the_published_keys_and_size(depth: int) -> None:
    chosen = recipe(f"var-d{depth}")
    shapes = draw.transformer_shapes(chosen.model, chosen.schedule)
    assert set(shapes) == published_keys(depth, shared=depth == 36)
    assert sum(t.numel() for k, t in shapes.items() if not k.endswith(BUFFERS)) == PARAMETERS[depth]
    length = 2240 if depth == 36 else 680
    assert shapes["attn_bias_for_masking"].shape == (1, 1, length, length)
    assert shapes["lvl_1L"].dtype == torch.int64
    assert shapes["blocks.0.attn.scale_mul_1H11"].shape == (1, depth, 1, 1)


def test_the_tokenizer_has_the_published_shapes() -> None:
    shapes = {k: tuple(t.shape) for k, t in draw.tokenizer_shapes(recipe("var-d16").tokenizer, 10).items()}
    assert shapes["encoder.down.2.block.0.nin_shortcut.weight"] == (320, 160, 1, 1)
    assert shapes["encoder.down.3.downsample.conv.weight"] == (320, 320, 3, 3)
    assert shapes["encoder.down.4.attn.1.qkv.weight"] == (1920, 640, 1, 1)
    assert shapes["decoder.up.3.block.0.nin_shortcut.weight"] == (320, 640, 1, 1)
    assert shapes["decoder.up.0.block.2.conv2.weight"] == (160, 160, 3, 3)
    assert shapes["quantize.ema_vocab_hit_SV"] == (10, 4096)
    assert shapes["quantize.quant_resi.qresi_ls.3.weight"] == (32, 32, 3, 3)
    assert {k.split(".")[0] for k in shapes} == {"encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_key_of_every_recipe_has_a_rule(name: str) -> None:
    chosen = recipe(name)
    parts = [
        ("var:", draw.transformer_shapes(chosen.model, chosen.schedule), draw.VAR_RULES),
        ("vae:", draw.tokenizer_shapes(chosen.tokenizer, len(chosen.schedule)), draw.VAE_RULES),
    ]
    for prefix, shapes, rules in parts:
        buffers = {k for k in shapes if k.endswith((*BUFFERS, "ema_vocab_hit_SV", "lfq.mask"))}
        for key in shapes.keys() - buffers:
            assert draw.draw(0, prefix + key, (2,), rules).isfinite().all()


# Parameters in millions (the sheet's sections 2.1 and 3.1; HART's by its count of "about 0.73B").
SIZES = {"infinity-125m-1m": 125.2, "infinity-2b-1m": 2204.6, "infinity-8b-1m": 8375.8, "hart-1024": 732.4}


@pytest.mark.parametrize("name", SIZES)
def test_other_transformers_have_the_published_sizes(name: str) -> None:
    chosen = recipe(name)
    shapes = draw.transformer_shapes(chosen.model, chosen.schedule)
    assert round(sum(t.numel() for k, t in shapes.items() if not k.endswith(BUFFERS)) / 1e6, 1) == SIZES[name]


def test_infinity_has_the_published_keys() -> None:
    """The table of the sheet's section 2.5."""
    chosen = recipe("infinity-2b-1m")
    shapes = {k: tuple(t.shape) for k, t in draw.transformer_shapes(chosen.model, chosen.schedule).items()}
    block = "block_chunks.7.module.3"
    assert shapes["cfg_uncond"] == (512, 2048)
    assert shapes["text_proj_for_sos.ca.mat_q"] == (1, 16, 128)
    assert shapes["lvl_embed.weight"] == (15, 2048)
    assert shapes["shared_ada_lin.1.weight"] == (12288, 2048)
    assert shapes[f"{block}.sa.scale_mul_1H11"] == (1, 16, 1, 1)
    assert shapes[f"{block}.ca.mat_kv.weight"] == (4096, 2048)
    zeros = {k for k in shapes if k.endswith("zero_k_bias")}
    assert {"text_proj_for_sos.ca.zero_k_bias", f"{block}.sa.zero_k_bias", f"{block}.ca.zero_k_bias"} <= zeros
    assert len(zeros) == 1 + 2 * 32
    assert not {"lvl_1L", "attn_bias_for_masking"} & shapes.keys()
    assert len([k for k in shapes if k.startswith("block_chunks.")]) == 32 * 21
    pictures = draw.tokenizer_shapes(chosen.tokenizer, 13)
    assert pictures["quantizer.lfq.mask"].shape == pictures["quantize.lfq.mask"].shape == (32,)
    assert pictures["decoder.conv_out.conv.weight"].shape == (3, 128, 3, 3)


def test_hart_keeps_the_text_in_training_s_buffers() -> None:
    """The sheet's section 3.4: L + CT - 1 tokens."""
    chosen = recipe("hart-1024")
    shapes = draw.transformer_shapes(chosen.model, chosen.schedule)
    assert shapes["attn_bias_for_masking"].shape == (1, 1, 9750, 9750)
    levels = draw.levels_of(chosen.model, chosen.schedule)
    assert levels is not None
    assert levels.bincount().tolist() == [300, *(h * w for h, w in chosen.schedule[1:])]


@pytest.mark.parametrize("form", draw.FORMATS)
def test_a_drawn_checkpoint_loads_strictly(form: str, tmp_path: Path) -> None:
    files = tiny.draw_tiny(tmp_path, form=form)
    assert [p.name for p in files] == [f"var_d2.{form}", f"vae_ch32v64z32.{form}"]
    checkpoint = load_checkpoint(*files, encoder=True)
    assert (checkpoint.model, checkpoint.tokenizer, checkpoint.schedule) == (tiny.MODEL, tiny.TOKENIZER, tiny.SCHEDULE)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in files)


def test_training_s_buffers_are_what_the_schedule_says(tiny_checkpoint: tuple[Path, Path]) -> None:
    state = read_state(tiny_checkpoint[0], "var")
    assert state["lvl_1L"].tolist() == [[0] + [1] * 4 + [2] * 9 + [3] * 16]
    mask = state["attn_bias_for_masking"][0, 0]
    assert mask[4, 4:6].tolist() == [0.0, float("-inf")]
    assert mask[29].eq(0).all()
    assert not state["blocks.1.attn.zero_k_bias"].any()


def test_a_seed_fixes_the_weights_and_another_changes_them(tiny_checkpoint: tuple[Path, Path], tmp_path: Path) -> None:
    again, other = tiny.draw_tiny(tmp_path / "again"), tiny.draw_tiny(tmp_path / "other", seed=1)
    for first, second in zip(tiny_checkpoint, again, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert tiny_checkpoint[0].read_bytes() != other[0].read_bytes()


@pytest.mark.parametrize("depth", [2, 36])
def test_logits_and_pictures_are_sane_at_any_depth(depth: int, tmp_path: Path) -> None:
    model = var_model(depth, 64, heads=2, classes=10, vocabulary=64, shared_adaln=depth == 36)
    checkpoint = load_checkpoint(*draw.draw_checkpoint(model, tiny.TOKENIZER, tiny.SCHEDULE, tmp_path))
    plan = plan_for(recipe("var-d16"), model, tiny.TOKENIZER, tiny.SCHEDULE, Sampling(top_k=20))
    pictures, steps = Eager(plan, checkpoint.var, checkpoint.vae).generate(Request([1, 2, 3], guidance_scale=0.0))
    for step in steps:
        assert 1.0 < float(step.prediction.logits.std()) < 5.0
    assert 0.1 < pictures.std() < 0.45
    assert len(set(steps[-1].prediction.tokens.flatten().tolist())) > 10


UNTOLD: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[Grid, ...], dict[str, Any]]] = {
    "grids": ({}, {}, ((1, 1), (1, 4), (2, 8), (3, 12)), {"patch_nums": [[1, 1], [1, 4], [2, 8], [3, 12]]}),
    "groups": ({}, {"norm_groups": 8}, tiny.SCHEDULE, {"vae": {"norm_groups": 8}}),
    "heads": ({"qk_norm": False}, {}, tiny.SCHEDULE, {"heads": 2}),
}


@pytest.mark.parametrize(("model", "tokenizer", "schedule", "entries"), UNTOLD.values(), ids=UNTOLD)
def test_what_tensors_do_not_tell_is_in_the_config_beside_them(
    model: dict[str, Any],
    tokenizer: dict[str, Any],
    schedule: tuple[Grid, ...],
    entries: dict[str, Any],
    tmp_path: Path,
) -> None:
    sizes = var_model(1, 64, heads=2, classes=10, vocabulary=64, **model), replace(tiny.TOKENIZER, **tokenizer)
    checkpoint = load_checkpoint(*draw.draw_checkpoint(*sizes, schedule, tmp_path))
    assert (checkpoint.model, checkpoint.tokenizer, checkpoint.schedule) == (*sizes, schedule)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == entries


def test_nothing_is_overwritten(tiny_checkpoint: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"var_d2\.pth is already there"):
        tiny.draw_tiny(tiny_checkpoint[0].parent)
    (tmp_path / "config.json").write_text('{"patch_nums": [1, 2]}')
    with pytest.raises(InputError, match=r"config\.json is already there"):
        tiny.draw_tiny(tmp_path)


def test_a_disk_that_is_too_small_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    huge = var_model(600, 64 * 600)
    with pytest.raises(EnvironmentProblem, match=r"the checkpoint needs \d+ MB and"):
        draw.draw_checkpoint(huge, tiny.TOKENIZER, tiny.SCHEDULE, tmp_path / "drawn")
    assert not list((tmp_path / "drawn").iterdir())


def test_an_interrupted_draw_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int, what: str) -> None:
        if stage == "write" and what.startswith("vae"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw.draw_checkpoint(tiny.MODEL, tiny.TOKENIZER, ((1, 1), (2, 3)), tmp_path, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_draw_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".draw.tmp-1").mkdir()
    (tmp_path / ".draw.tmp-1" / "var_d2.pth").write_text("half a file")
    var, vae = draw.draw_checkpoint(tiny.MODEL, tiny.TOKENIZER, tiny.SCHEDULE, tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted((var, vae))


def test_a_folder_that_is_a_file_and_an_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written to"):
        tiny.draw_tiny(tmp_path / "file")
    with pytest.raises(InputError, match="format 'ckpt' is unknown; known are pth, safetensors"):
        tiny.draw_tiny(tmp_path, form="ckpt")


FAILING: dict[str, Exception] = {
    "safetensors": OSError(errno.ENOSPC, "No space left on device"),
    "pth": RuntimeError("PytorchStreamWriter failed writing file data/1: No space left on device"),
}


@pytest.mark.parametrize("form", FAILING)
def test_a_disk_that_fails_is_a_sentence(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise FAILING[form]

    monkeypatch.setattr(draw.safetensors_file, "write", fail)
    monkeypatch.setattr(draw.torch, "save", fail)
    with pytest.raises(EnvironmentProblem, match=f"^{tmp_path} cannot be written to \\(.*No space left on device\\)"):
        tiny.draw_tiny(tmp_path, form=form)
    assert not list(tmp_path.iterdir())
