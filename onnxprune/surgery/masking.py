"""Masked originals: the reference that a cut model must equal."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.analysis.groups import Analysis
from onnxprune.ir.edit import add_initializer
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import attribute
from onnxprune.surgery.integers import is_quantized
from onnxprune.surgery.size_literals import Editor
from onnxprune.types import Plan

# Operand -> slot of its zero point
_ZERO_SLOTS: dict[str, dict[int, int]] = {
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), {0: 2, 1: 3}),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), {0: 2, 3: 5}),
    "MatMulIntegerToFloat": {0: 4, 1: 5},
    "QAttention": {0: 6, 1: 7},
    "DynamicQuantizeLSTM": {1: 9, 2: 11},
}

_CONVOLUTIONS = ("ConvInteger", "QLinearConv")

# Types that Where takes on the CPU; float16 is widened for the comparison
_WHERE_TYPES = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
_FLOATS = (*_WHERE_TYPES, TensorProto.BFLOAT16)
_WHERE_OPSET = 9  # the first that broadcasts


def masked(analysis: Analysis, plan: Plan) -> Model:
    """Return the original with removed channels zeroed in every operand that a node sums over."""
    editor = Editor(analysis, analysis.model.edit(), analysis.removed(plan.kept))
    # `integer_sums` recognizes products in quantized graphs, whose values are finite anyway
    select = analysis.model.opset >= _WHERE_OPSET and not is_quantized(analysis.model)
    for number, mask in enumerate(analysis.all_masks):
        keep = analysis.keep(mask.ids, editor.removed)
        if keep.all():
            continue
        node = editor.nodes[mask.node]
        rank = len(analysis.shapes.shape(mask.tensor) or ())
        shape = [len(keep) if i == mask.axis else 1 for i in range(rank)]
        keep = keep.reshape(shape)
        node.input[mask.slot] = _mask(editor, mask.node, mask.slot, keep, number, select)
    return editor.model.freeze()


def _mask(
    editor: Editor, index: int, slot: int, keep: np.ndarray, number: int, select: bool
) -> str:
    """Add a node that zeroes removed channels of an operand; return its output.

    Removed values are replaced by zero, or by the zero point of quantized values. A product with 0
    would turn an infinite value of a removed channel into NaN, which the cut model does not see.
    """
    dtype = editor.analysis.shapes.dtype(editor.analysis.nodes[index].input[slot])
    node = editor.nodes[index]
    name = node.input[slot]  # an earlier mask of the same operand included
    out = editor.name_tensor(f"{name}_masked_{number}")
    if dtype in _FLOATS and not (select and dtype in _WHERE_TYPES):
        values = keep.astype(helper.tensor_dtype_to_np_dtype(dtype))
        factor = add_initializer(editor.model, f"{out}_factor", values)
        editor.insert(index, helper.make_node("Mul", [name, factor], [out], name=out))
        return out
    zero_slot = None if dtype in _FLOATS else _ZERO_SLOTS.get(node.op_type, {}).get(slot)
    zero = "" if zero_slot is None or zero_slot >= len(node.input) else node.input[zero_slot]
    zero = _broadcast_zero(editor, node, slot, zero, keep.ndim, f"{out}_zero")
    if not zero:
        zeros = np.zeros((), helper.tensor_dtype_to_np_dtype(dtype))
        zero = add_initializer(editor.model, f"{out}_zero", zeros)
    mask = add_initializer(editor.model, f"{out}_keep", keep)
    editor.insert(index, helper.make_node("Where", [mask, name, zero], [out], name=out))
    return out


def _broadcast_zero(
    editor: Editor, node: NodeProto, slot: int, name: str, rank: int, out: str
) -> str:
    """Return a zero point in a shape that broadcasts with its operand of a rank."""
    weight = editor.model.weights.get(name)
    if weight is None or not weight.shape:
        return name
    values = weight.array()
    if node.op_type in _CONVOLUTIONS:
        # one zero point per filter lies along the first axis of the weight
        values = values.reshape(-1, *[1] * (rank - 1))
    elif node.op_type == "DynamicQuantizeLSTM":
        # one per direction, or one per direction and column
        values = values.reshape(len(values), 1, -1)
    elif values.ndim == 1 and (slot == 0 or attribute(node, "transB", 0)):
        # one per row of the first matrix, or per column of the second one, which is transposed
        values = values.reshape(-1, 1)
    else:
        return name
    return add_initializer(editor.model, out, values)
