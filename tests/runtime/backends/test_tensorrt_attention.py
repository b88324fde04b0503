"""The plain form of the fused attention, against the fused one on ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from nextscale.runtime.backends.tensorrt.attention import attention_nodes, expand_attention
from nextscale.runtime.errors import BackendError


def model_of(heads: int, scale: float, kind: int = TensorProto.FLOAT, **more: object) -> onnx.ModelProto:
    node = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v"],
        ["out"],
        "attn",
        domain="com.microsoft",
        num_heads=heads,
        scale=scale,
        **more,
    )
    inputs = [helper.make_tensor_value_info(name, kind, ["rows", None, heads * 8]) for name in "qkv"]
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("out", kind, ["rows", None, heads * 8])]
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize(("rows", "queries", "keys", "heads"), [(1, 1, 1, 1), (2, 5, 13, 4), (4, 9, 9, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_it_computes_what_the_fused_node_computes(rows: int, queries: int, keys: int, heads: int, dtype: str) -> None:
    fused = model_of(heads, 0.4, TensorProto.FLOAT if dtype == "float32" else TensorProto.FLOAT16)
    plain = onnx.ModelProto()
    plain.CopyFrom(fused)
    expand_attention(plain)
    assert attention_nodes(fused)
    assert not attention_nodes(plain)
    onnx.checker.check_model(plain, full_check=True)
    rng = np.random.default_rng(rows)
    lengths = {"q": queries, "k": keys, "v": keys}
    feeds = {n: rng.standard_normal((rows, m, heads * 8)).astype(dtype) for n, m in lengths.items()}
    found = [ort.InferenceSession(m.SerializeToString()).run(None, feeds)[0] for m in (fused, plain)]
    np.testing.assert_allclose(found[1], found[0], atol=2e-6 if dtype == "float32" else 4e-3)


def test_an_attention_that_is_not_ours_is_refused() -> None:
    with pytest.raises(BackendError, match="attn"):
        expand_attention(model_of(2, 1.0, unidirectional=1))
