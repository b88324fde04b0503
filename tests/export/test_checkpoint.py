"""Reading checkpoints: sizes from tensors, in every published layout."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from support import tiny
from support.checkpoints import PARTS, Files
from torch import Tensor

from nextscale.export.checkpoint import Checkpoint, load_checkpoint
from nextscale.export.draw import transformer_shapes
from nextscale.export.eager import Eager, Request
from nextscale.export.state_dict import file_digest
from nextscale.plan.chain import next_scale_plan
from nextscale.plan.errors import InputError
from nextscale.plan.recipes import var_model
from nextscale.plan.schedules import SCHEDULES
from nextscale.plan.types import Grid, Model, Sampling


def logits_of(checkpoint: Checkpoint) -> Tensor:
    plan = next_scale_plan("t", checkpoint.model, checkpoint.tokenizer, checkpoint.schedule, Sampling(20))
    steps = list(Eager(plan, checkpoint.var, checkpoint.vae).stream(Request([1])))
    return torch.cat([step.prediction.logits for step in steps], dim=1)


def test_sizes_are_read_from_the_tensors(files: Files) -> None:
    checkpoint = files.load()
    assert (checkpoint.model, checkpoint.tokenizer, checkpoint.schedule) == (tiny.MODEL, tiny.TOKENIZER, tiny.SCHEDULE)
    assert not checkpoint.var.training
    assert not any(p.requires_grad for p in (*checkpoint.var.parameters(), *checkpoint.vae.parameters()))
    assert [(f.name, f.sha256) for f in checkpoint.source.files] == [
        (path.name, file_digest(path)) for path in files.paths.values()
    ]


MODELS = {
    "shared adaLN": var_model(2, 64, heads=2, classes=3, vocabulary=64, shared_adaln=True),
    "no l2 norm": var_model(1, 128, heads=2, classes=3, vocabulary=64, qk_norm=False),
    "deep and thin": var_model(5, 64, heads=4, classes=1, vocabulary=64, ffn_ratio=1.5),
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_sizes_of_other_models(model: Model, files: Files) -> None:
    shapes = transformer_shapes(model, tiny.SCHEDULE)
    files.states["var"] = {k: torch.zeros(t.shape, dtype=t.dtype) for k, t in shapes.items()}
    files.states["var"]["lvl_1L"] = torch.arange(4).repeat_interleave(torch.tensor([1, 4, 9, 16]))[None]
    files.write("var")
    assert files.load().model == model


@pytest.mark.parametrize("name", ["var-256", "var-512"])
def test_a_published_schedule_is_known_by_its_length(name: str, files: Files) -> None:
    for key, shape in transformer_shapes(tiny.MODEL, SCHEDULES[name]).items():
        files.states["var"][key] = torch.zeros(shape.shape, dtype=shape.dtype)
    for key in ("lvl_1L", "attn_bias_for_masking"):
        del files.states["var"][key]
    files.write("var")
    assert files.load().schedule == SCHEDULES[name]


def test_config_json_tells_a_schedule_before_the_file_does(files: Files) -> None:
    files.config(patch_nums=[1, 2, [3, 3], [2, 8]])
    assert files.load().schedule == ((1, 1), (2, 2), (3, 3), (2, 8))


def test_a_given_schedule_counts_most(files: Files) -> None:
    wanted: tuple[Grid, ...] = ((1, 1), (1, 4), (9, 1), (8, 2))
    files.config(patch_nums=[1, 2, 3, 4])
    assert files.load(schedule=wanted).schedule == wanted


def test_config_json_tells_what_tensors_do_not(files: Files) -> None:
    names = [f"class {i}" for i in range(10)]
    files.config(class_names=names, licence="CC0-1.0", trained_by="somebody", vae={"norm_groups": 16, "stride": "?"})
    checkpoint = files.load()
    assert checkpoint.class_names == tuple(names)
    assert checkpoint.source.licence == "CC0-1.0"
    assert checkpoint.tokenizer.norm_groups == 16


def test_heads_come_from_config_json_only_without_the_l2_norm(files: Files) -> None:
    files.config(heads=4)
    assert files.load().model.heads == tiny.MODEL.heads
    for key in [k for k in files.states["var"] if k.endswith("scale_mul_1H11")]:
        del files.states["var"][key]
    files.config(heads=4)
    assert (files.load().model.heads, files.load().model.head_dim) == (4, 16)
    (files.folder / "config.json").unlink()
    assert files.load().model.heads == 1  # width / 64


def test_every_layout_gives_the_same_model(files: Files) -> None:
    wanted = logits_of(files.load())
    trainer = {"var_wo_ddp": files.states["var"], "vae_local": files.states["vae"], "var_opt": {"lr": 0.1}}
    nested = files.write("var", {"epoch": 3, "args": {"depth": 2}, "trainer": trainer})
    assert torch.equal(logits_of(load_checkpoint(nested, nested)), wanted)
    flat = {part: files.folder / f"{part}.safetensors" for part in PARTS}
    for part, path in flat.items():
        save_file({k: t.contiguous() for k, t in files.states[part].items()}, path)
    assert torch.equal(logits_of(load_checkpoint(flat["var"], flat["vae"])), wanted)
    old_form = files.folder / "old.pth"
    torch.save(files.states["var"], old_form, _use_new_zipfile_serialization=False)
    assert torch.equal(logits_of(load_checkpoint(old_form, flat["vae"])), wanted)


def test_what_only_training_uses_may_be_missing(files: Files) -> None:
    wanted = logits_of(files.load())
    for key in [k for k in files.states["var"] if k.endswith(("zero_k_bias", "attn_bias_for_masking"))]:
        del files.states["var"][key]
    del files.states["vae"]["quantize.ema_vocab_hit_SV"]
    for part in PARTS:
        files.write(part)
    assert torch.equal(logits_of(files.load()), wanted)


def test_a_tokenizer_of_another_schedule_s_statistics_fits(files: Files) -> None:
    files.states["vae"]["quantize.ema_vocab_hit_SV"] = torch.ones(13, 64)
    files.write("vae")
    assert files.load().vae.quantize.ema_vocab_hit_SV.shape == (4, 64)


def test_a_tokenizer_without_its_encoder(files: Files) -> None:
    wanted = logits_of(files.load())
    assert not [key for key in files.load().vae.state_dict() if key.startswith(("encoder.", "quant_conv."))]
    decoder = {k: t for k, t in files.states["vae"].items() if not k.startswith(("encoder.", "quant_conv."))}
    files.write("vae", decoder)
    assert torch.equal(logits_of(files.load()), wanted)
    with pytest.raises(InputError, match=r"missing: encoder\.conv_in\.weight"):
        files.load(encoder=True)


def test_half_precision_files_are_loaded_as_float32(files: Files) -> None:
    half = {k: t.half() if t.is_floating_point() else t for k, t in files.states["var"].items()}
    files.write("var", half)
    checkpoint = files.load()
    assert {p.dtype for p in checkpoint.var.parameters()} == {torch.float32}
    assert torch.equal(checkpoint.var.head.weight, half["head.weight"].float())
