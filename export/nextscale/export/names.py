"""How weights are named in graphs: ``<weight set>/<checkpoint key>``, or ``derived/<name>`` with its rule."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor, nn

from nextscale.export.models.var import VAR, SelfAttention
from nextscale.export.models.vqvae import VQVAE, GroupNorm
from nextscale.plan.resize import RESIZES

RULES = {
    **SelfAttention.RULES,
    **VAR.RULES,
    **GroupNorm.RULES,
    "area": "one axis of adaptive average pooling, (n_out, n_in)",
    "bicubic": "one axis of bicubic interpolation, align_corners=False, a=-0.75, (n_out, n_in)",
    "bilinear": "one axis of bilinear interpolation, align_corners=False, (n_out, n_in)",
}
BEHIND = {"q_scale": "scale_mul_1H11", "gain": "weight", "shift": "bias"}
_MATRIX = re.compile(rf"(?:.*\.)?resize\.((?:{'|'.join(RESIZES)})_\d+_\d+)")
_ROOTS = (("var.", "var/"), ("vae.", "vae/"), ("quantize.", "vae/quantize."))


def bundle_names(weights: Iterable[str], layer: int | None) -> dict[str, str]:
    """A component's weights, as it names them, to the bundle's names; ``layer`` is where a block stands."""
    return {name: bundle_name(name, layer) for name in weights}


def bundle_name(name: str, layer: int | None = None) -> str:
    """The bundle's name of one weight of a component."""
    if matrix := _MATRIX.fullmatch(name):
        return f"derived/{matrix[1]}"
    if name.startswith("block."):
        name = f"var/blocks.{layer}.{name.removeprefix('block.')}"
    else:
        prefix, root = next((p, r) for p, r in _ROOTS if name.startswith(p))
        name = root + name.removeprefix(prefix)
    return f"derived/{name}" if rule_of(name) else name


def rule_of(name: str) -> str | None:
    """The rule of a derived tensor; None for a checkpoint's own."""
    last = name.rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    return next((rule for key, rule in RULES.items() if last == key or re.fullmatch(rf"{key}(_\d+)+", last)), None)


def sources_of(name: str) -> tuple[str, ...]:
    """The checkpoint keys, with their weight set, that a weight is made of; none for a resize matrix."""
    if not name.startswith("derived/"):
        return (name,)
    key = name.removeprefix("derived/")
    stem, _, last = key.rpartition(".")
    if last == "qkv_bias":
        return (f"{stem}.q_bias", f"{stem}.v_bias")
    if last in BEHIND:
        return (f"{stem}.{BEHIND[last]}",)
    if key.startswith("var/lvl_pos_"):
        start = ("var/pos_start",) if key.endswith("_00") else ()
        return ("var/lvl_embed.weight", "var/pos_1LC", *start)
    return ()


def tensors_of(names: Iterable[str], var: VAR, vae: VQVAE) -> dict[str, Tensor]:
    """The values behind the bundle's names, from folded models whose resizes are prepared."""
    matrices = dict(vae.quantize.resize.named_buffers()) | dict(var.resize.named_buffers())
    return {name: _tensor_of(name.removeprefix("derived/"), var, vae, matrices) for name in names}


def _tensor_of(name: str, var: VAR, vae: VQVAE, matrices: dict[str, Tensor]) -> Tensor:
    if name in matrices:
        return matrices[name]
    root, _, key = name.partition("/")
    module: nn.Module = {"var": var, "vae": vae}[root]
    path, _, leaf = key.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), leaf)
    return tensor.detach().contiguous()
