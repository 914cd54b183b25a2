"""Reshaping of Range operands of one element to scalars, as the operator's definition asks.

onnxruntime runs a Range of vectors as long as it does not know their shapes; the canonical form
tells it the shapes that constant conditions hide.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

from onnxprune.ir.edit import add_initializer, replace_nodes
from onnxprune.ir.model import EditableModel
from onnxprune.ir.nodes import STANDARD_DOMAINS
from onnxprune.ir.shapes import Shapes


def make_range_scalars(model: EditableModel, shapes: Shapes) -> bool:
    """Reshape operands of shape (1,) of Range nodes in the main graph; return whether any is."""
    nodes: list[NodeProto] = []
    changed = False
    for node in model.proto.graph.node:
        if node.op_type == "Range" and node.domain in STANDARD_DOMAINS:
            for slot, name in enumerate(node.input):
                if shapes.shape(name) != (1,):
                    continue
                scalar = f"{node.output[0]}_operand_{slot}"
                # not Squeeze, whose axes are an attribute or an input, depending on the opset
                empty = add_initializer(model, f"{scalar}_shape", np.zeros(0, np.int64))
                nodes.append(helper.make_node("Reshape", [name, empty], [scalar], scalar))
                node.input[slot] = scalar
                changed = True
        nodes.append(node)
    if changed:
        replace_nodes(model.proto.graph, nodes)
    return changed
