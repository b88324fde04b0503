"""The weights of a model too large to be loaded: each read, folded and cast when it is asked for."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nextscale.export.lazy import Lazy
from nextscale.export.models.contract import TokenizerModel, Transformer
from nextscale.export.state_dict import read_floats


class Parameters:
    """What a model's weights are once it is loaded, folded and cast, without ever being all of that.

    ``model`` stands on the meta device as it was built, ``final`` is the same folded and cast (also without weights),
    which tells shapes and dtypes. ``state`` is what :func:`nextscale.export.state_dict.fitting` found for ``model``.
    """

    def __init__(
        self, model: Transformer | TokenizerModel, final: nn.Module, state: Mapping[str, Lazy], path: Path
    ) -> None:
        self.model, self.final, self.state, self.path = model, final, state, path
        self._folded: tuple[str, nn.Module] | None = None  # the last, for a module's derived tensors follow each other

    def __getitem__(self, name: str) -> Lazy:
        """The weight of that name within the model (``blocks.7.attn.qkv_bias``), the checkpoint's or a derived one.

        Reading it raises :class:`~nextscale.plan.errors.InputError` where the file is damaged or has NaN or Inf.
        """
        owner, _, leaf = name.rpartition(".")
        final: Tensor = getattr(self.final.get_submodule(owner), leaf)

        def make() -> Tensor:
            if name in self.state:
                return self._read(name).to(final.dtype)
            tensor: Tensor = getattr(self._fold(owner), leaf)
            assert tensor.isfinite().all(), f"{name} is made of more than it tells"
            return tensor.to(final.dtype)

        return Lazy(final.shape, final.dtype, make)

    def _read(self, key: str) -> Tensor:
        return read_floats(self.state[key], key, self.path)

    def _fold(self, path: str) -> nn.Module:
        """A copy of the module at ``path``, folded, in which nothing is read but what derived tensors are made of.

        What is not read is NaN, of one number's memory.
        """
        if self._folded is None or self._folded[0] != path:
            owner = copy.deepcopy(self.model.get_submodule(path))
            prefix = f"{path}." if path else ""
            sources = {source for derived in self.model.DERIVED.values() for source in derived.sources}
            tensors = {
                key: self._read(prefix + key) if key in sources else torch.tensor(torch.nan).expand(wanted.shape)
                for key, wanted in owner.state_dict().items()
            }
            owner.load_state_dict(tensors, assign=True)
            with torch.no_grad():
                owner.fold()  # type: ignore[operator]
            self._folded = path, owner
        return self._folded[1]
