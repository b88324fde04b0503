"""HART's ``config.json``: what its tensors do not tell, and which of upstream's branches it was trained with.

Entries are upstream's constructor arguments (the sheet's sections 3.1 and 3.4); those that are not read here are
whatever their writer wants to say. Nothing is assumed: what neither an entry nor a tensor tells is asked for, and where
both tell it they must agree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nextscale.export.config import read_schedule
from nextscale.export.models.denoising import TRAINED_STEPS
from nextscale.export.state_dict import State
from nextscale.plan.errors import InputError
from nextscale.plan.types import Diffusion, Grid, Model, Text

FILE_NAME = "config.json"

# Entries of which one value alone is built; tensors would tell all but the last two.
BUILT: Mapping[str, Any] = {
    "attn_type": "llama",
    "mlp_type": "llama",
    "disable_aln": True,
    "shared_aln": False,
    "use_cross_attn": False,
    "sampler": "iddpm",
    "norm_eps": 1e-6,
}
NOT_IN_TENSORS = ("sampler", "norm_eps")

T = TypeVar("T", bool, int)


@dataclass(frozen=True)
class HartConfig:
    """The entries of a HART's ``config.json`` at ``path``, none of them a branch that is not built.

    Raises :class:`InputError` for one that is.
    """

    path: Path
    entries: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, built in BUILT.items():
            if name in self.entries and self.entries[name] != built:
                raise InputError(
                    f"{self.path} has {name} {self.entries[name]!r}: of HART's branches only {name} {built!r} is built"
                )
            if name in NOT_IN_TENSORS and name not in self.entries:
                raise self.lacks(name)

    @property
    def schedule(self) -> tuple[Grid, ...]:
        """``patch_nums``, the sides of square scales, or [height, width] of others."""
        return read_schedule(self.path, self.entry("patch_nums"))

    @property
    def denoising_steps(self) -> int:
        """``num_sampling_steps``, which upstream writes as a text; its other forms of spacing are not built."""
        steps = str(self.entry("num_sampling_steps"))
        if not re.fullmatch("[0-9]+", steps) or not 2 <= int(steps) <= TRAINED_STEPS:
            raise self.wrong("num_sampling_steps", f'a whole number from 2 to {TRAINED_STEPS}, as in "8"')
        return int(steps)

    def entry(self, name: str) -> Any:
        """An entry that must be there."""
        if name not in self.entries:
            raise self.lacks(name)
        return self.entries[name]

    def agreed(self, name: str, told: T | None, kind: type[T]) -> T:
        """An entry's value, a number above 0 or a truth, or what tensors tell of it; both where there are both."""
        if name not in self.entries and told is not None:
            return told
        value = self.entry(name)
        if not (_whole(value) if kind is int else isinstance(value, bool)):
            raise self.wrong(name, "a whole number above 0" if kind is int else "true or false")
        if told is not None and value != told:
            raise InputError(
                f"{self.path} has {name} {value!r} and the checkpoint's tensors have {told!r}: "
                "give the two that belong together"
            )
        return kind(value)

    def lacks(self, name: str) -> InputError:
        """What to say of an entry that is not there."""
        return InputError(f"{self.path} does not say {name}, and no tensor tells it: add the entry")

    def wrong(self, name: str, asked: str) -> InputError:
        """What to say of an entry of another kind or size."""
        return InputError(f"{self.path} has {name} {self.entries[name]!r:.80}: it should be {asked}")


def hart_config(path: Path) -> HartConfig:
    """A HART's ``config.json``, or the one in a folder or beside a checkpoint; :class:`InputError` if it is broken."""
    path = Path(path)
    file = path if path.name == FILE_NAME else (path if path.is_dir() else path.parent) / FILE_NAME
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: a HART's checkpoint needs the {FILE_NAME} beside it") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): fetch it again") from error
    if not isinstance(entries, dict):
        raise InputError(f"{file} does not hold a JSON object: fetch it again")
    return HartConfig(file, entries)


def hart_model_of(state: State, config: HartConfig, path: Path) -> Model:
    """The transformer's sizes, from the tensors of the checkpoint at ``path`` and the entries of its config."""
    _need(state, path)
    width, code_channels = state["word_embed.weight"].shape
    scale = state.get("blocks.0.attn.scale_mul_1H11")
    heads = config.agreed("num_heads", None if scale is None or scale.ndim != 4 else scale.shape[1], int)
    if width % heads or width // heads % 4:
        raise InputError(f"{path} is {width} wide, which {heads} heads of a size that four divides cannot share")
    if code_channels % 2:
        raise InputError(f"{path} has codes of {code_channels} channels: the diffusion draws noise for pairs of them")
    return Model(
        family="hart",
        depth=config.agreed("depth", _count(r"blocks\.(\d+)\.", state), int),
        width=config.agreed("embed_dim", width, int),
        heads=heads,
        head_dim=width // heads,
        ffn_width=_ffn_width(state["blocks.0.ffn.gate_proj.weight"].shape[0], width, config),
        vocabulary=state["head.weight"].shape[0],
        code_channels=code_channels,
        qk_norm=config.agreed("attn_l2_norm", scale is not None, bool),
        adaln=False,
        rope="text",
        gated_ffn=True,
        level_mlp=config.agreed("use_timestep_embed", "lvl_embed.mlp.0.weight" in state, bool),
        text=Text(
            tokens=config.agreed("context_token", _context_tokens(state, config), int),
            width=config.agreed("context_dim", state["context_embed.weight"].shape[1], int),
            use="prefix",
            norm=config.agreed("use_context_norm", "context_norm.weight" in state, bool),
        ),
        diffusion=Diffusion(
            width=config.agreed("diff_width", state["diffloss.net.cond_embed.weight"].shape[0], int),
            depth=config.agreed("diff_depth", _count(r"diffloss\.net\.res_blocks\.(\d+)\.", state), int),
            steps=config.denoising_steps,
        ),
    )


def _context_tokens(state: State, config: HartConfig) -> int | None:
    """From the levels that training keeps, one for each token of a text and of all scales but the first."""
    levels = state.get("lvl_1L")
    if levels is None or levels.ndim != 2 or "patch_nums" not in config.entries:
        return None
    found = levels.shape[1] + 1 - sum(h * w for h, w in config.schedule)
    return found if found > 0 else None


def _ffn_width(found: int, width: int, config: HartConfig) -> int:
    """The hidden width of the feed-forward, which ``mlp_ratio`` must give by Llama's rule where it is there."""
    ratio = config.entries.get("mlp_ratio")
    if ratio is None:
        return found
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1e6:
        raise config.wrong("mlp_ratio", "a number above 0")
    asked = (int(width * ratio * 2 / 3 + 255)) // 256 * 256
    if asked != found:
        raise InputError(
            f"{config.path} has mlp_ratio {ratio}, which makes a feed-forward of {asked}, and the checkpoint's has "
            f"{found}: give the two that belong together"
        )
    return found


def _need(state: State, path: Path) -> None:
    """Refuses a state dict without the matrices that sizes are read from."""
    needed = ("word_embed", "context_embed", "blocks.0.ffn.gate_proj", "head", "diffloss.net.cond_embed")
    keys = [f"{name}.weight" for name in needed]
    if missing := [key for key in keys if key not in state]:
        raise InputError(f"{path} is no HART transformer: it lacks {', '.join(missing)}")
    if odd := [key for key in keys if state[key].ndim != 2 or not state[key].numel()]:
        shapes = ", ".join(f"{key} {tuple(state[key].shape)}" for key in odd)
        raise InputError(f"{path} is no HART transformer: none has tensors of the shapes {shapes}")


def _count(pattern: str, state: State) -> int:
    """How many numbers the keys have there."""
    return len({m[1] for key in state if (m := re.match(pattern, key))})


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
