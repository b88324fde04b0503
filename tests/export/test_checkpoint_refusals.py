"""Checkpoints whose tensors are not those of one model are refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support import tiny
from support.checkpoints import Files
from torch import Tensor

from nextscale.export.draw import tokenizer_shapes
from nextscale.plan.errors import InputError
from nextscale.plan.schedules import squares
from nextscale.plan.types import Tokenizer


def test_missing_unexpected_and_misshapen_keys_are_listed_at_once(files: Files) -> None:
    state = files.states["var"]
    del state["blocks.1.ffn.fc2.bias"], state["blocks.0.attn.q_bias"]
    state["blocks.0.attn.k_bias"] = torch.zeros(64)
    state["head.bias"] = torch.zeros(63)
    path = files.write("var")
    with pytest.raises(InputError) as caught:
        files.load()
    said = str(caught.value)
    assert said.startswith(str(path))
    assert "2 missing: blocks.0.attn.q_bias, blocks.1.ffn.fc2.bias" in said
    assert "1 unexpected: blocks.0.attn.k_bias" in said
    assert "1 misshapen: head.bias (63,), not (64,)" in said


def test_every_key_of_a_long_list_is_named(files: Files) -> None:
    for i in (*range(20), 30):
        files.states["vae"][f"extra.{i}.weight"] = torch.zeros(1)
    files.states["vae"]["odd"] = torch.zeros(1)
    files.write("vae")
    with pytest.raises(InputError, match=r"22 unexpected: extra\.\{0-19,30\}\.weight, odd\)"):
        files.load()


def test_a_layer_numbered_beyond_reason_is_refused_at_once(files: Files) -> None:
    files.states["var"]["blocks.99999999999.attn.q_bias"] = torch.zeros(64)
    files.write("var")
    with pytest.raises(InputError, match=r"missing: blocks\.2\..* unexpected: blocks\.99999999999\.attn\.q_bias"):
        files.load()


@pytest.mark.parametrize("key", ["blocks.2.attn.q_bias", "blocks.7.ada_lin.1.weight"])
def test_a_layer_in_part_is_no_layer(key: str, files: Files) -> None:
    files.states["var"][key] = torch.zeros(64)
    files.write("var")
    with pytest.raises(InputError, match=r"missing: blocks\.2\."):
        files.load()


READ_FOR_SIZES = {
    "var": ("pos_start", "class_emb.weight", "word_embed.weight", "head.weight", "blocks.0.ffn.fc1.weight", "pos_1LC"),
    "vae": (
        "decoder.norm_out.weight",
        "quantize.embedding.weight",
        "post_quant_conv.weight",
        "decoder.up.0.block.0.conv2.weight",
        "decoder.up.1.block.0.conv2.weight",
    ),
}


SIZED = [(part, key) for part, keys in READ_FOR_SIZES.items() for key in keys]
OTHERS = [
    ("var", "blocks.0.attn.scale_mul_1H11"),
    ("var", "blocks.1.attn.mat_qkv.weight"),
    ("var", "head.bias"),
    ("vae", "encoder.conv_in.weight"),
    ("vae", "decoder.mid.attn_1.qkv.bias"),
    ("vae", "quantize.quant_resi.qresi_ls.2.weight"),
]


@pytest.mark.parametrize(("part", "key"), SIZED)
def test_a_key_that_tells_sizes_is_missing(part: str, key: str, files: Files) -> None:
    del files.states[part][key]
    files.write(part)
    with pytest.raises(InputError, match=f"is no VAR .*: it lacks {key}"):
        files.load()


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda t: torch.tensor(1.0),
    "one more": lambda t: torch.cat((t, t[:1])),
    "one axis more": lambda t: t.unsqueeze(0),
    "one axis less": lambda t: t.flatten(0, 1) if t.ndim > 1 else t[0],
    "empty": lambda t: t[:0].clone(),
}
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "whole numbers": lambda t: t.long(),
    "one NaN": lambda t: torch.where(torch.arange(t.numel()).reshape(t.shape) == t.numel() - 1, torch.nan, t),
    "infinite": lambda t: t + torch.inf,
}
RESHAPED = [
    (part, key, change)
    for part, key in (*SIZED, *OTHERS)
    for change in SHAPES
    if (key, change) != ("class_emb.weight", "one more")  # a model of one more class
]


@pytest.mark.parametrize(("part", "key", "change"), RESHAPED)
def test_a_tensor_of_another_shape(part: str, key: str, change: str, files: Files) -> None:
    files.states[part][key] = SHAPES[change](files.states[part][key])
    path = files.write(part)
    with pytest.raises(InputError, match=str(path)):
        files.load()


@pytest.mark.parametrize("change", VALUES)
@pytest.mark.parametrize(("part", "key"), OTHERS)
def test_a_tensor_that_is_not_of_finite_floats(part: str, key: str, change: str, files: Files) -> None:
    files.states[part][key] = VALUES[change](files.states[part][key])
    path = files.write(part)
    with pytest.raises(InputError, match=f"{path} holds values that are not finite floats in {key}: the checkpoint is"):
        files.load()


def test_an_encoder_that_is_not_asked_for_is_checked_too(files: Files) -> None:
    del files.states["vae"]["encoder.conv_in.weight"], files.states["vae"]["quant_conv.bias"]
    files.states["vae"]["encoder.garbage"] = torch.zeros(1)
    files.write("vae")
    with pytest.raises(
        InputError, match=r"missing: encoder\.conv_in\.weight, quant_conv\.bias; 1 unexpected: encoder\.g"
    ):
        files.load()


def test_a_tokenizer_of_another_vocabulary(files: Files) -> None:
    state = files.states["vae"]
    state["quantize.embedding.weight"] = torch.zeros(63, 32)
    files.write("vae")
    with pytest.raises(InputError, match=r"predicts 64 codes of 32 channels and .* holds 63 of 32"):
        files.load()


def test_a_tokenizer_of_other_code_channels(files: Files) -> None:
    tokenizer = Tokenizer(32, (1, 2), res_blocks=1, code_channels=16, vocabulary=64, stride=2)
    shapes = tokenizer_shapes(tokenizer, 4)
    files.write("vae", {k: torch.zeros(t.shape) for k, t in shapes.items()})
    with pytest.raises(InputError, match=r"predicts 64 codes of 32 channels and .* holds 64 of 16"):
        files.load()


def test_the_two_files_swapped(files: Files) -> None:
    files.paths = {"var": files.paths["vae"], "vae": files.paths["var"]}
    with pytest.raises(
        InputError, match=r"vae.*\.pth is no VAR transformer: it lacks pos_start.*the tokenizer's file\?"
    ):
        files.load()


def test_the_transformer_given_twice(files: Files) -> None:
    files.paths["vae"] = files.paths["var"]
    with pytest.raises(InputError, match=r"var.*\.pth is no VAR tokenizer: it lacks .*the transformer's file\?"):
        files.load()


def test_a_schedule_that_nothing_tells(files: Files) -> None:
    del files.states["var"]["lvl_1L"]
    files.write("var")
    with pytest.raises(
        InputError, match=r"the schedule of .* \(30 tokens\) is not known: give --schedule, or patch_nums"
    ):
        files.load()
    assert files.load(schedule=tiny.SCHEDULE).schedule == tiny.SCHEDULE


def test_levels_that_are_no_levels_tell_no_schedule(files: Files) -> None:
    for level in (torch.full((1, 30), -1), torch.full((1, 30), 2**40), torch.zeros(1, 29, dtype=torch.int64)):
        files.states["var"]["lvl_1L"] = level
        files.write("var")
        with pytest.raises(InputError, match="is not known"):
            files.load()


def test_a_schedule_of_another_length(files: Files) -> None:
    with pytest.raises(InputError, match=r"misshapen: pos_1LC \(1, 30, 64\), not \(1, 14, 64\), lvl_embed"):
        files.load(schedule=squares(1, 2, 3))
