"""Reading checkpoint files safely and comparing their keys strictly. No pickle is ever executed."""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nextscale.plan.errors import InputError

State = dict[str, Tensor]
# What a damaged file makes the readers raise: its bytes are taken for instructions that do not fit each other.
DAMAGED = (
    SafetensorError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    zipfile.BadZipFile,
)
TRAINER_PARTS = {"var": "var_wo_ddp", "vae": "vae_local"}


def read_state(path: Path, part: str) -> State:
    """The flat state dict of a ``.pth`` or ``.safetensors`` file; tensors are mapped, not copied, where that works.

    ``part`` ('var' or 'vae') is looked up where upstream's trainer nests both in one file (``ar-ckpt-*.pth``).
    Raises :class:`InputError` for a file that is missing, damaged, or holds something else than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}: give the path of a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except DAMAGED as error:
        raise InputError(
            f"{path} cannot be read as a checkpoint ({_first_line(error)}): fetch the file again"
        ) from error
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            if not file.read(4).startswith((b"PK\x03\x04", b"\x80")):
                raise InputError(
                    f"{path} is no PyTorch file, whatever its name says (a web page or a Git LFS pointer, perhaps): "
                    "fetch the file again, or name it .safetensors if it is that"
                ) from error
        raise InputError(
            f"{path} is refused: it holds more than tensors, and unpickling it could run code; "
            "save it again as a plain state dict or as .safetensors"
        ) from error
    return _flat(loaded, path, part)


def _flat(loaded: object, path: Path, part: str) -> State:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("trainer"), Mapping):
        loaded = loaded["trainer"].get(TRAINER_PARTS[part])
        if loaded is None:
            raise InputError(f"{path} is a training file without ['trainer'][{TRAINER_PARTS[part]!r}]")
    if not isinstance(loaded, Mapping) or not loaded or not all(map(_is_entry, loaded.items())):
        raise InputError(f"{path} does not hold a flat state dict of tensors: give the {part} checkpoint itself")
    return dict(loaded)


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def load_strictly(module: nn.Module, state: State, path: Path, ignorable: tuple[str, ...]) -> None:
    """Gives ``module`` (built on the meta device) the tensors of ``state``, without a copy.

    Every missing, unexpected and misshapen key is listed in one :class:`InputError`; keys that end in one of
    ``ignorable`` may be there and are dropped. Integers where floats belong, NaN and Inf are refused too.
    """
    wanted = module.state_dict()
    given = {k: v for k, v in state.items() if k in wanted or not k.endswith(ignorable)}
    problems = {
        "missing": [k for k in wanted if k not in given],
        "unexpected": [k for k in given if k not in wanted],
        "misshapen": [
            f"{k} {tuple(given[k].shape)}, not {tuple(w.shape)}"
            for k, w in wanted.items()
            if k in given and given[k].shape != w.shape
        ],
    }
    if any(problems.values()):
        lists = "; ".join(f"{len(keys)} {kind}: {_listed(keys)}" for kind, keys in problems.items() if keys)
        raise InputError(
            f"{path} does not fit the model that it should hold ({lists}): give the file that belongs to it"
        )
    for key, tensor in given.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path} holds values that are not finite floats in {key}: the checkpoint is damaged")
    module.load_state_dict({k: v.float() for k, v in given.items()}, strict=True, assign=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _listed(keys: list[str]) -> str:
    """Every key, those that differ in the first number alone as one: ``blocks.{0-15,17}.attn.q_bias``."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for key in keys:
        head, *rest = re.split(r"(?<=\.)(\d+)(?=\.)", key, maxsplit=1)
        numbers.setdefault((head, "".join(rest[1:])), []).extend(map(int, rest[:1]))
    return ", ".join(f"{head}{_ranges(found)}{tail}" for (head, tail), found in numbers.items())


def _ranges(numbers: list[int]) -> str:
    """``7`` or ``{0-15,17}``; nothing for no number."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"{{{text}}}" if len(numbers) > 1 else text


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
