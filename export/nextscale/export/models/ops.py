"""The operators that a graph must hold as one node each: plain PyTorch when run, a named ONNX node when traced."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x (..., C_in) @ weight (C_out, C_in)^T + bias``.

    A graph gets ``Gemm(transB=1)``: a transpose of the weight would be folded into a private copy of it by every
    session that opens the graph.
    """
    if not torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    inputs = (flat, weight) if bias is None else (flat, weight, bias)
    out: Tensor = torch.onnx.ops.symbolic(
        "Gemm", inputs, {"transB": 1}, dtype=x.dtype, shape=(flat.shape[0], weight.shape[0]), version=20
    )
    return out.reshape(*x.shape[:-1], weight.shape[0])


def group_norm(x: Tensor, groups: int, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Maps (B, C, h, w) float32 normalised by groups of channels, times ``gain`` plus ``shift``, to the same shape.

    Both are (C), or (C, 1, 1) where a graph is traced, which multiplies maps by them as they are. A graph gets
    ``InstanceNormalization`` over groups, one pass each for gain and shift, and none for a gain of 1 and a shift of 0
    of the groups themselves, which PyTorch's own exporter writes.
    """
    if not torch.compiler.is_exporting():
        return F.group_norm(x, groups, gain, shift, eps)
    flat = x.reshape(x.shape[0], groups, -1)
    normed: Tensor = torch.onnx.ops.symbolic(
        "InstanceNormalization",
        (flat, torch.ones(groups), torch.zeros(groups)),
        {"epsilon": eps},
        dtype=x.dtype,
        shape=flat.shape,
        version=20,
    )
    return normed.reshape(x.shape) * gain + shift


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """Softmax attention of queries (R, m, H, hd) over key rows (T, R, H, hd) and value rows (T, R, H, hv).

    To (R, m, H * hv). ``bias`` is added to the scores (teacher forcing's block-causal mask); graphs have none.
    """
    rows, m, heads, _ = q.shape
    if torch.compiler.is_exporting() and bias is None:
        # com.microsoft's fused form never holds the scores; keys as (R, T, H * hd).
        flat = [_heads_in_one(t) for t in (q, k.permute(1, 0, 2, 3), v.permute(1, 0, 2, 3))]
        out: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            flat,
            {"num_heads": heads, "scale": scale},
            dtype=q.dtype,
            shape=(rows, m, heads * v.shape[-1]),
            version=1,
        )
        return out
    scores = (q.transpose(1, 2), k.permute(1, 2, 0, 3), v.permute(1, 2, 0, 3))
    return F.scaled_dot_product_attention(*scores, attn_mask=bias, scale=scale).transpose(1, 2).reshape(rows, m, -1)


def _heads_in_one(t: Tensor) -> Tensor:
    """(R, n, H, hd) to (R, n, H * hd), a number for every parser even where R and n are none."""
    rows, n, heads, head_dim = t.shape
    shape = torch.tensor([0, 0, heads * head_dim])  # 0: as it is
    out: Tensor = torch.onnx.ops.symbolic(
        "Reshape", (t, shape), dtype=t.dtype, shape=(rows, n, heads * head_dim), version=20
    )
    return out
