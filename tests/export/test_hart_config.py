"""HART's ``config.json``: read, held against the tensors, and refused in a sentence where it is another model's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale.export.hart_config import hart_config, hart_model_of
from nextscale.export.models.hart import HART
from nextscale.plan.errors import InputError
from nextscale.plan.families.hart import hart_model
from nextscale.plan.schedules import squares
from nextscale.plan.types import Diffusion, Model, Text

SCHEDULE = squares(1, 2, 3)
MODEL = hart_model(2, 48, heads=3, text=Text(5, 24, "prefix"), diffusion=Diffusion(16, 3, 4), vocabulary=40)
VARIANTS = {
    "as inferred": MODEL,
    "l2 norm": replace(MODEL, qk_norm=True),
    "level table": replace(MODEL, level_mlp=False),
    "no context norm": replace(MODEL, text=Text(5, 24, "prefix", norm=False)),
}
ENTRIES: dict[str, Any] = {
    "architectures": ["HARTForT2I"],
    "attn_l2_norm": False,
    "attn_type": "llama",
    "context_dim": 24,
    "context_norm_scale": 0.5,
    "context_token": 5,
    "depth": 2,
    "diff_depth": 3,
    "diff_width": 16,
    "disable_aln": True,
    "embed_dim": 48,
    "mlp_ratio": 4.0,
    "mlp_type": "llama",
    "norm_eps": 1e-06,
    "num_heads": 3,
    "num_sampling_steps": "4",
    "patch_nums": [1, 2, 3],
    "sampler": "iddpm",
    "sep_aln_pooling_mode": "max",
    "shared_aln": False,
    "use_context_norm": True,
    "use_cross_attn": False,
    "use_timestep_embed": True,
}


def state_of(model: Model, levels: bool = True) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the meta device, with what training keeps beside them."""
    with torch.device("meta"):
        state = dict(HART(model, SCHEDULE).state_dict())
        if levels and model.text:
            state["lvl_1L"] = torch.zeros(1, model.text.tokens + 13, dtype=torch.int64)
    return state


def read(folder: Path, entries: dict[str, Any], state: dict[str, Tensor] | None = None) -> Model:
    (folder / "config.json").write_text(json.dumps(entries), encoding="utf-8")
    return hart_model_of(state or state_of(MODEL), hart_config(folder / "model.pth"), folder / "model.pth")


def of_variant(model: Model) -> dict[str, Any]:
    assert model.text is not None
    return {
        **ENTRIES,
        "attn_l2_norm": model.qk_norm,
        "use_timestep_embed": model.level_mlp,
        "use_context_norm": model.text.norm,
    }


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_config_and_its_tensors_make_the_model(model: Model, tmp_path: Path) -> None:
    assert read(tmp_path, of_variant(model), state_of(model)) == model
    assert hart_config(tmp_path).schedule == SCHEDULE
    assert hart_config(tmp_path / "config.json").entries == of_variant(model)


@pytest.mark.parametrize("model", VARIANTS.values(), ids=VARIANTS.keys())
def test_what_tensors_tell_needs_no_entry(model: Model, tmp_path: Path) -> None:
    said = ("norm_eps", "num_heads", "num_sampling_steps", "patch_nums", "sampler")
    entries = {name: ENTRIES[name] for name in said}
    if model.qk_norm:
        del entries["num_heads"]
    assert read(tmp_path, entries, state_of(model)) == model


@pytest.mark.parametrize("name", ["norm_eps", "num_heads", "num_sampling_steps", "sampler", "context_token"])
def test_what_no_tensor_tells_is_asked_for(name: str, tmp_path: Path) -> None:
    entries = {key: value for key, value in ENTRIES.items() if key != name}
    with pytest.raises(InputError, match=rf"config\.json does not say {name}, and no tensor tells it: add the entry"):
        read(tmp_path, entries, state_of(MODEL, levels=False))


def test_the_schedule_is_asked_for(tmp_path: Path) -> None:
    assert read(tmp_path, {k: v for k, v in ENTRIES.items() if k != "patch_nums"}) == MODEL
    with pytest.raises(InputError, match="does not say patch_nums"):
        _ = hart_config(tmp_path).schedule


OTHERS: dict[str, Any] = {
    "depth": 3,
    "embed_dim": 64,
    "context_dim": 25,
    "context_token": 6,
    "diff_width": 17,
    "diff_depth": 2,
    "attn_l2_norm": True,
    "use_timestep_embed": False,
    "use_context_norm": False,
}


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_entries_and_tensors_must_agree(name: str, value: Any, tmp_path: Path) -> None:
    sentence = rf"config\.json has {name} {value} and the checkpoint's tensors have .*: give the two that belong"
    with pytest.raises(InputError, match=sentence):
        read(tmp_path, {**ENTRIES, name: value})


def test_the_feed_forward_follows_from_its_ratio(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mlp_ratio 9.5, which makes a feed-forward of 512, .* has 256"):
        read(tmp_path, {**ENTRIES, "mlp_ratio": 9.5})
    assert read(tmp_path, {**ENTRIES, "mlp_ratio": 3}).ffn_width == 256  # rounded up to the same


BRANCHES: dict[str, Any] = {
    "attn_type": "gpt2",
    "mlp_type": "gpt2",
    "disable_aln": False,
    "shared_aln": True,
    "use_cross_attn": True,
    "sampler": "ddim",
    "norm_eps": 1e-5,
}


@pytest.mark.parametrize(("name", "value"), BRANCHES.items())
def test_branches_that_are_not_built_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"config\.json has {name} .*: of HART's branches only {name} .* is built"):
        read(tmp_path, {**ENTRIES, name: value})


WRONG: dict[str, list[Any]] = {
    "num_heads": [0, -3, 1.5, "3", True, None],
    "depth": ["2", 2.0],
    "attn_l2_norm": [0, "false", None],
    "num_sampling_steps": ["ddim8", "4,4", "1", 0, 1001, "-8", 2.5, None],
    "mlp_ratio": ["4", True, -1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_an_entry_of_another_kind(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"config\.json has {name} .*: it should be "):
        read(tmp_path, {**ENTRIES, name: value})


@pytest.mark.parametrize("sides", ["123", [], [1, 0], [1, 2.5], [[1, 1], [2, 2, 2]], [True, 2]])
def test_a_schedule_of_another_kind(sides: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**ENTRIES, "patch_nums": sides}))
    with pytest.raises(InputError, match=r"patch_nums .* it should be a list of sides or \[height, width\] pairs"):
        _ = hart_config(tmp_path).schedule


def test_heads_must_share_the_width(tmp_path: Path) -> None:
    for heads in (5, 8):  # of no whole size, and of a size of 6
        with pytest.raises(InputError, match=f"is 48 wide, which {heads} heads of a size that four divides"):
            read(tmp_path, {**ENTRIES, "num_heads": heads})


def test_a_state_of_another_model(tmp_path: Path) -> None:
    state = state_of(MODEL)
    del state["diffloss.net.cond_embed.weight"]
    with pytest.raises(InputError, match=r"no HART transformer: it lacks diffloss\.net\.cond_embed\.weight"):
        read(tmp_path, ENTRIES, state)
    odd = {**state_of(MODEL), "head.weight": torch.zeros(3)}
    with pytest.raises(InputError, match=r"none has tensors of the shapes head\.weight \(3,\)"):
        read(tmp_path, ENTRIES, odd)
    uneven = {**state_of(MODEL), "word_embed.weight": torch.zeros(48, 31)}
    with pytest.raises(InputError, match="codes of 31 channels"):
        read(tmp_path, ENTRIES, uneven)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b"\xff\xfe\x00"])
def test_a_file_that_is_no_object(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json cannot be read: a HART's checkpoint needs"):
        hart_config(tmp_path)
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(InputError, match=r"config\.json (is not JSON|does not hold a JSON object).*fetch it again"):
        hart_config(tmp_path)
