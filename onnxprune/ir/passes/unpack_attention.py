"""Splitting of queries, keys and values that one operand of fused attention holds.

Its axis is a concatenation of parts of different lengths, which no pattern of the rule table
describes. As three operands each part is followed on its own.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from onnxprune.ir.contrib import CONTRIB_DOMAIN
from onnxprune.ir.edit import add_initializer, replace_nodes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import attribute
from onnxprune.ir.shapes import Shapes

_PACKED = ("GroupQueryAttention", "DecoderMaskedMultiHeadAttention")
_SIZES_ARE_INPUTS = 13  # opset from which the sizes of Split are an input


def unpack_attention(model: EditableModel, shapes: Shapes) -> bool:
    """Split the packed operands of the main graph; return whether there were any."""
    nodes: list[NodeProto] = []
    changed = False
    for node in model.proto.graph.node:
        sizes = _find_part_sizes(node, shapes)
        if sizes is not None:
            nodes.append(_split(model, node, sizes))
            changed = True
        nodes.append(node)
    if changed:
        replace_nodes(model.proto.graph, nodes)
    return changed


def _find_part_sizes(node: NodeProto, shapes: Shapes) -> list[int] | None:
    """Return the channels of queries, keys and values; None if they are not packed."""
    if node.op_type not in _PACKED or node.domain != CONTRIB_DOMAIN:
        return None
    # keys and values are operands of their own
    if any(node.input[1:3]):
        return None
    shape = shapes.shape(node.input[0])
    heads = attribute(node, "num_heads", 0)
    # absent: as many heads of keys as of queries
    key_heads = attribute(node, "kv_num_heads", heads)
    if shape is None or not isinstance(shape[-1], int) or not heads or not key_heads:
        return None
    # no multiple: the node contradicts its definition, and is kept as it is
    size, rest = divmod(shape[-1], heads + 2 * key_heads)
    return None if rest else [heads * size, key_heads * size, key_heads * size]


def _split(model: EditableModel, node: NodeProto, sizes: list[int]) -> NodeProto:
    """Give the node three operands; return the Split that computes them."""
    packed = node.input[0]
    parts = [f"{node.output[0]}_{part}" for part in ("query", "key", "value")]
    name = f"{node.name or node.output[0]}_unpack"
    # trailing absent operands need not be listed
    while len(node.input) < len(parts):
        node.input.append("")
    node.input[:3] = parts
    if model.opset < _SIZES_ARE_INPUTS:
        return helper.make_node("Split", [packed], parts, name, axis=-1, split=sizes)
    widths = add_initializer(model, f"{name}_sizes", np.array(sizes, np.int64))
    return helper.make_node("Split", [packed, widths], parts, name, axis=-1)
