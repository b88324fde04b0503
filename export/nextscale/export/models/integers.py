"""Products in integers, as eager PyTorch computes them: weights rounded by output channel, activations by token.

A product is ``sum_k x_k w_k`` with x and w as integers times a scale. The scale of a weight is that of its output
channel, known at export; the scale of activations is that of their token, found as they come. So a picture depends on
no other of its batch, and a token with large values costs no other token its accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = 127  # the largest integer, of either sign
# 7 bits, for processors without VNNI add pairs of products in 16 bits: 2 * 255 * 64 fits, 2 * 255 * 127 saturates.
# On the demo model the eighth bit would lower the error of logits by 1 %: activations make most of it.
WEIGHTS = 64
TINY = 1e-30  # below any activation: a token of zeros has a scale all the same


def integers(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (C_out, C_in) float32 as integers (C_out, C_in) int8 and a scale (C_out) float32 for each row."""
    scale = weight.abs().amax(dim=1).clamp(min=TINY) / WEIGHTS
    return (weight / scale[:, None]).round().to(torch.int8), scale


def rounded(x: Tensor) -> Tensor:
    """Activations (..., C_in) float32, each the nearest of 255 values that its token's largest spans."""
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=TINY)
    return (x / largest * ACTIVATIONS).round() * (largest / ACTIVATIONS)


class IntegerWeight(Tensor):
    """A linear layer's weight (C_out, C_in) float32 of integers times scales, which rounds what it is multiplied by."""

    @classmethod
    def of(cls, weight: Tensor) -> nn.Parameter:
        """The parameter that stands for ``weight`` in a model that computes its products in integers."""
        whole, scale = integers(weight.detach())
        return nn.Parameter((whole * scale[:, None]).as_subclass(cls), requires_grad=False)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not F.linear:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        x, weight, *bias = args
        with torch._C.DisableTorchFunctionSubclass():
            return F.linear(rounded(x), weight, *bias)
