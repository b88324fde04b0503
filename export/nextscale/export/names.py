"""How weights are named in graphs: ``<weight set>/<checkpoint key>``, or ``derived/<name>`` with its rule."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from nextscale.export import int8
from nextscale.export.families import DERIVED
from nextscale.export.lazy import Lazy
from nextscale.export.models.contract import Derived
from nextscale.export.parameters import Parameters
from nextscale.export.text_graph import DERIVED as TEXT
from nextscale.plan.resize import RESIZES, resize_matrix

MATRICES = {
    "area": Derived("one axis of adaptive average pooling, (n_out, n_in)"),
    "bicubic": Derived("one axis of bicubic interpolation, align_corners=False, a=-0.75, (n_out, n_in)"),
    "bilinear": Derived("one axis of bilinear interpolation, align_corners=False, (n_out, n_in)"),
}
RULES = {**DERIVED, **int8.RULES, **MATRICES}
_MATRIX = re.compile(rf"(?:.*\.)?resize\.((?:{'|'.join(RESIZES)})_\d+_\d+)")
_ROOTS = (("var.", "var/"), ("vae.", "vae/"), ("quantize.", "vae/quantize."))


def bundle_names(weights: Iterable[str], block: str | None) -> dict[str, str]:
    """A component's weights, as it names them, to the bundle's names; ``block`` is where a block stands."""
    return {name: bundle_name(name, block) for name in weights}


def bundle_name(name: str, block: str | None = None) -> str:
    """The bundle's name of one weight of a component."""
    if matrix := _MATRIX.fullmatch(name):
        return f"derived/{matrix[1]}"
    if name.startswith("block."):
        name = f"var/{block}.{name.removeprefix('block.')}"
    else:
        prefix, root = next((p, r) for p, r in _ROOTS if name.startswith(p))
        name = root + name.removeprefix(prefix)
    return f"derived/{name}" if _derived(name) else name


def rule_of(name: str) -> str | None:
    """The rule of a derived tensor, in words; None for a checkpoint's own."""
    found = _derived(name)
    return found.rule if found else None


def sources_of(name: str) -> tuple[str, ...]:
    """The checkpoint keys, with their weight set, that a weight is made of; none for a resize matrix."""
    found = _derived(name)
    if found is None:
        return (name,)
    root, _, path = name.removeprefix("derived/").partition("/")
    owner = path.rpartition(".")[0]
    stem = f"{root}/{owner}." if owner else f"{root}/"
    return tuple(stem + source for source in found.sources)


def _derived(name: str) -> Derived | None:
    rules = TEXT if name.removeprefix("derived/").startswith("text/") else RULES
    last = name.rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    return next((how for key, how in rules.items() if last == key or re.fullmatch(rf"{key}(_\d+)+", last)), None)


def weights_of(names: Iterable[str], models: Mapping[str, Parameters]) -> dict[str, Lazy]:
    """The values behind the bundle's names, each made when it is read; ``models`` by weight set."""
    return {name: _weight_of(name.removeprefix("derived/"), models) for name in names}


def _weight_of(name: str, models: Mapping[str, Parameters]) -> Lazy:
    root, slash, key = name.partition("/")
    if slash:
        owner, _, leaf = key.rpartition(".")
        if leaf in int8.RULES:
            return int8.weight_part(models[root][f"{owner}.weight"], leaf)
        return models[root][key]
    mode, n_in, n_out = name.rsplit("_", 2)
    return Lazy.of(torch.from_numpy(resize_matrix(mode, int(n_in), int(n_out))))
