"""Reading checkpoint files safely and comparing their keys strictly. No pickle is ever executed.

A checkpoint is opened, which reads names, shapes and dtypes, and its tensors are read one at a time when they are
asked for, so that a model need not be in memory to be exported.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nextscale.export import safetensors_file, torch_file
from nextscale.export.lazy import Entry, Lazy
from nextscale.export.shards import check_shard, files_of
from nextscale.plan.errors import InputError

State = Mapping[str, Entry]
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
# Where upstreams' trainers nest the parts of one file.
TRAINER_PARTS = {"var": ("var_wo_ddp", "gpt_fsdp"), "vae": ("vae_local",)}
PREFIX = "vae."  # of HART's tokenizer


def read_state(path: Path, part: str) -> dict[str, Tensor]:
    """As :func:`open_state`, with every tensor read."""
    return {key: entry.read() for key, entry in open_state(path, part).items()}


def open_state(path: Path, part: str) -> dict[str, Lazy]:
    """The flat state dict of a ``.pth`` or ``.safetensors`` file or of a folder of them; no tensor is read yet.

    ``part`` ('var', 'vae' or 'text') is looked up where upstream nests several in one file: a trainer's
    (``ar-ckpt-*.pth``), or a tokenizer beside its averaged self. Only a file of PyTorch's old form is read at once.
    Raises :class:`InputError` for files that are missing, damaged, or hold something else than tensors; reading a
    tensor raises it too.
    """
    first, *shards = files_of(Path(path))
    if first.suffix != ".json":
        return _unprefixed(_entries(first, part), first)
    state: dict[str, Lazy] = {}
    for shard in shards:
        entries = _entries(shard, part)
        check_shard(first, shard, entries)
        state |= entries
    return _unprefixed(state, first)


def _entries(path: Path, part: str) -> dict[str, Lazy]:
    """The tensors of one file."""
    try:
        if path.suffix == ".safetensors":
            return safetensors_file.entries(path)
        loaded, lazy = torch_file.load(path)
        return {key: lazy(tensor) for key, tensor in _flat(loaded, path, part).items()}
    except InputError:
        raise
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


def _flat(loaded: object, path: Path, part: str) -> dict[str, Tensor]:
    """The part's own state dict of what a PyTorch file holds."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("trainer"), Mapping):
        names = TRAINER_PARTS.get(part, ())
        loaded = next((loaded["trainer"][name] for name in names if name in loaded["trainer"]), None)
        if loaded is None:
            places = " or ".join(f"['trainer'][{name!r}]" for name in names or (part,))
            raise InputError(f"{path} is a training file without {places}")
    elif isinstance(loaded, Mapping) and isinstance(loaded.get(part), Mapping):
        loaded = loaded[part]
    if not isinstance(loaded, Mapping) or not loaded or not all(map(_is_entry, loaded.items())):
        raise InputError(f"{path} does not hold a flat state dict of tensors: give the {part} checkpoint itself")
    return dict(loaded)


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor) and item[1].layout == torch.strided


def _unprefixed(state: dict[str, Lazy], path: Path) -> dict[str, Lazy]:
    """Keys without the prefix of the model that a tokenizer was saved within."""
    plain = {key.removeprefix(PREFIX): entry for key, entry in state.items()}
    if twice := [key for key in plain if key in state and PREFIX + key in state]:
        raise InputError(f"{path} holds {twice[0]} with and without {PREFIX!r} before it: take one of them away")
    return plain


def fitting(module: nn.Module, state: State, path: Path, ignorable: tuple[str, ...]) -> dict[str, Lazy]:
    """The entries of ``state`` that are ``module``'s (built on the meta device), compared strictly.

    Every missing, unexpected and misshapen key is listed in one :class:`InputError`. Keys that end in one of
    ``ignorable``, or begin with one that ends in a dot, may be there and are dropped. Integers where floats belong are
    refused too. Nothing is read.
    """
    wanted = module.state_dict()
    begins = tuple(part for part in ignorable if part.endswith("."))
    given = {
        k: Lazy.of(v) for k, v in state.items() if k in wanted or not (k.endswith(ignorable) or k.startswith(begins))
    }
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
    for key, entry in given.items():
        if not entry.dtype.is_floating_point:
            raise _no_floats(path, key)
    return given


def load_strictly(module: nn.Module, state: State, path: Path, ignorable: tuple[str, ...]) -> None:
    """Gives ``module`` (built on the meta device) the tensors of ``state`` as float32, each in memory once.

    Refuses what :func:`fitting` and :func:`read_floats` refuse.
    """
    given = fitting(module, state, path, ignorable)
    module.load_state_dict({k: read_floats(e, k, path) for k, e in given.items()}, strict=True, assign=True)


def read_floats(entry: Lazy, key: str, path: Path) -> Tensor:
    """One tensor as float32; :class:`InputError` where a value is NaN or infinite."""
    tensor = entry.read().float()
    if tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):  # a twentieth of isfinite's time, no memory
        raise _no_floats(path, key)
    return tensor


def _no_floats(path: Path, key: str) -> InputError:
    return InputError(f"{path} holds values that are not finite floats in {key}: the checkpoint is damaged")


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
