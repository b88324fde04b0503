"""ScatterRestore in PyTorch: its meaning, the custom operator, and the way into an exported graph.

Source: the FastVAR paper's cached token restoration, as its public code does it (fact sheet, section 4.1, step 4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from nextscale.plugins.signature import (
    DOMAIN,
    DOMAIN_VERSION,
    INPUTS,
    NAME,
    PLUGIN_ATTRIBUTES,
    ScatterRestoreError,
    check_shapes,
)


def scatter_restore_reference(
    kept: Tensor, index: Tensor, cache: Tensor, residual: Tensor, row_matrix: Tensor, column_matrix: Tensor
) -> Tensor:
    """What ScatterRestore means; shapes and dtypes as :mod:`nextscale.plugins.signature` lists them, unchecked."""
    rows, _, width = residual.shape
    (h, hc), (w, wc) = row_matrix.shape, column_matrix.shape
    tall = row_matrix @ cache.float().reshape(rows, hc, wc * width)  # (R, h, wc * C)
    area = column_matrix @ tall.reshape(rows, h, wc, width)  # (R, h, w, C)
    restored = area.reshape(rows, h * w, width)
    row = torch.arange(rows, device=index.device)[:, None]  # (R, 1)
    restored[row, index.long()] = kept.float()
    return (residual.float() + restored).to(residual.dtype)


@torch.library.custom_op(f"{DOMAIN}::scatter_restore", mutates_args=())
def _operator(
    kept: Tensor, index: Tensor, cache: Tensor, residual: Tensor, row_matrix: Tensor, column_matrix: Tensor
) -> Tensor:
    inputs = (kept, index, cache, residual, row_matrix, column_matrix)
    _check(*inputs)
    return scatter_restore_reference(*inputs).contiguous()


@_operator.register_fake
def _fake(
    kept: Tensor, index: Tensor, cache: Tensor, residual: Tensor, row_matrix: Tensor, column_matrix: Tensor
) -> Tensor:
    _check(kept, index, cache, residual, row_matrix, column_matrix)
    return residual.new_empty(residual.shape)


def scatter_restore(
    kept: Tensor, index: Tensor, cache: Tensor, residual: Tensor, row_matrix: Tensor, column_matrix: Tensor
) -> Tensor:
    """``residual`` plus the sub-layer's update of all tokens: restored from ``cache``, at ``index`` from ``kept``.

    Shapes and dtypes as :mod:`nextscale.plugins.signature` lists them; others raise :class:`ScatterRestoreError`. The
    order of ``index`` is not checked, because reading values makes a GPU wait. For inference: it has no gradient.

    Runs ``torch.ops.nextscale.scatter_restore``. Inside ``torch.onnx.export`` it becomes one node
    ``nextscale::ScatterRestore``; give the model its function afterwards
    (:func:`nextscale.plugins.onnx_function.attach`). The exporter always inlines a custom operator that it is given a
    translation for, which is why the node is written here.
    """
    inputs = (kept, index, cache, residual, row_matrix, column_matrix)
    if not torch.onnx.is_in_onnx_export():
        result: Tensor = _operator(*inputs)
        return result
    _check(*inputs)
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NAME}",
        inputs,
        dict(PLUGIN_ATTRIBUTES),
        dtype=residual.dtype,
        shape=residual.shape,
        version=DOMAIN_VERSION,
    )


def _check(*inputs: Tensor) -> None:
    check_shapes({name: tensor.shape for name, tensor in zip(INPUTS, inputs, strict=True)})
    kept, index, cache, residual, row_matrix, column_matrix = inputs
    if index.dtype != torch.int32:
        raise ScatterRestoreError(f"{NAME} takes an int32 index, not {index.dtype}; cast it with .to(torch.int32)")
    if row_matrix.dtype != torch.float32 or column_matrix.dtype != torch.float32:
        found = f"{row_matrix.dtype} and {column_matrix.dtype}"
        raise ScatterRestoreError(f"{NAME} takes area matrices in float32, not {found}; keep them out of .half()")
    if kept.dtype != cache.dtype or not kept.is_floating_point() or not residual.is_floating_point():
        found = f"{kept.dtype}, {cache.dtype} and {residual.dtype}"
        raise ScatterRestoreError(f"{NAME} takes kept and cache of one float dtype and a float residual, not {found}")
