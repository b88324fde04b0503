"""ScatterRestore as a model-local ONNX function: what a backend without a plugin for it computes.

ONNX Runtime and TensorRT-RTX inline the function; TensorRT takes a registered plugin instead, because the node carries
its attributes. The body takes every length from its inputs, so one function serves all nodes of all step graphs: the
grids from the matrices, whose static shapes a backend folds, and the rows from the index, so that they stay symbolic.
"""

from __future__ import annotations

import onnx
import onnx.parser

from nextscale.plugins.signature import (
    DOMAIN,
    DOMAIN_VERSION,
    INPUTS,
    NAME,
    PLUGIN_ATTRIBUTES,
    ScatterRestoreError,
)

# The first opset that torch's exporter writes; the body needs Shape's start and end, and CastLike.
MINIMUM_OPSET = 18

# ScatterND and not ScatterElements: it copies whole tokens, where the other moves every channel by its own index.
BODY = """
<domain: "{domain}", opset_import: ["" : {opset}]>
{name} <{attributes}> ({inputs}) => (result)
{{
    same = Constant <value = int64[1] {{0}}> ()
    inferred = Constant <value = int64[1] {{-1}}> ()
    h = Shape <start = 0, end = 1> (row_matrix)
    hc = Shape <start = 1, end = 2> (row_matrix)
    w = Shape <start = 0, end = 1> (column_matrix)
    wc = Shape <start = 1, end = 2> (column_matrix)
    tokens = Mul (h, w)

    cache_float = Cast <to = 1> (cache)
    by_rows = Concat <axis = 0> (same, hc, inferred)
    grid_rows = Reshape (cache_float, by_rows)
    tall_rows = MatMul (row_matrix, grid_rows)
    by_columns = Concat <axis = 0> (same, same, wc, inferred)
    tall = Reshape (tall_rows, by_columns)
    area_grid = MatMul (column_matrix, tall)
    by_tokens = Concat <axis = 0> (same, tokens, inferred)
    area = Reshape (area_grid, by_tokens)

    first = Constant <value = int64 {{0}}> ()
    step = Constant <value = int64 {{1}}> ()
    axis_1 = Constant <value = int64[1] {{1}}> ()
    axis_2 = Constant <value = int64[1] {{2}}> ()
    rows_1 = Shape <start = 0, end = 1> (index)
    rows = Squeeze (rows_1, same)
    row = Range (first, rows, step)
    row_column = Unsqueeze (row, axis_1)
    index_shape = Shape (index)
    row_index = Expand (row_column, index_shape)
    row_index_3 = Unsqueeze (row_index, axis_2)
    token_index = Cast <to = 7> (index)
    token_index_3 = Unsqueeze (token_index, axis_2)
    positions = Concat <axis = 2> (row_index_3, token_index_3)
    kept_float = Cast <to = 1> (kept)
    restored = ScatterND (area, positions, kept_float)

    residual_float = Cast <to = 1> (residual)
    sum = Add (residual_float, restored)
    result = CastLike (sum, residual)
}}
"""


def scatter_restore_function(opset: int) -> onnx.FunctionProto:
    """The function ``nextscale::ScatterRestore`` in standard operators of ``opset``.

    Inputs, output, shapes and dtypes as :mod:`nextscale.plugins.signature` lists them. Give it the opset of the model
    that it joins; one below 18 raises :class:`ScatterRestoreError`.
    """
    if opset < MINIMUM_OPSET:
        raise ScatterRestoreError(f"the body of {NAME} needs opset {MINIMUM_OPSET} or newer, not {opset}")
    text = BODY.format(
        domain=DOMAIN, name=NAME, opset=opset, attributes=", ".join(PLUGIN_ATTRIBUTES), inputs=", ".join(INPUTS)
    )
    return onnx.parser.parse_function(text)


def scatter_restore_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The ScatterRestore nodes of the model's graph, in its order."""
    return [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, NAME)]


def attach(model: onnx.ModelProto) -> None:
    """Gives ``model``, in place, the function in the model's own opset and the import of its domain.

    What was attached before is replaced. Raises :class:`ScatterRestoreError` where the model imports no standard
    operators, or where one of its ScatterRestore nodes lacks the attributes by which TensorRT finds a plugin.
    """
    for node in scatter_restore_nodes(model):
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if found != {name: value.encode() for name, value in PLUGIN_ATTRIBUTES.items()}:
            raise ScatterRestoreError(
                f"node {node.name!r} should have the attributes {PLUGIN_ATTRIBUTES} and has {found}; "
                f"make it with nextscale.plugins.scatter_restore inside torch.onnx.export"
            )
    versions = {opset.domain: opset.version for opset in model.opset_import}
    if "" not in versions:
        raise ScatterRestoreError(f"the model imports no standard operators, found only {sorted(versions)}")
    function = scatter_restore_function(versions[""])
    others = [f for f in model.functions if (f.domain, f.name) != (DOMAIN, NAME)]
    del model.functions[:]
    model.functions.extend([*others, function])
    if DOMAIN not in versions:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
