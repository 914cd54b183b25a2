"""Standard ops with the same output shape as onnxruntime's contrib ops, for shape inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from onnx import NodeProto, TensorProto, TypeProto

from onnxprune.ir.nodes import attribute

CONTRIB_DOMAIN = "com.microsoft"


class _Form(NamedTuple):
    """Standard form of a contrib op.

    Attributes
    ----------
    op
        Standard op.
    inputs
        Inputs of the contrib op that the standard op takes.
    dtype_slot
        Input whose element type the output has.
    default_dtype
        Element type of the output if that input is absent.
    """

    op: str
    inputs: slice
    dtype_slot: int
    default_dtype: int


_FORMS = {
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), _Form("Add", slice(0, 4, 3), 0, 0)),
    **dict.fromkeys(
        ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"), _Form("Identity", slice(1), 0, 0)
    ),
    "QLinearConcat": _Form("Concat", slice(2, None, 3), 2, 0),
    "QLinearWhere": _Form("Add", slice(1, 5, 3), 1, 0),
    "QLinearAveragePool": _Form("AveragePool", slice(1), 0, 0),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", slice(1), 0, 0),
    "QuantizeLinear": _Form("Identity", slice(1), 2, TensorProto.UINT8),
    "DequantizeLinear": _Form("Identity", slice(1), 1, 0),
    "FusedConv": _Form("Conv", slice(2), 0, 0),
    "FusedGemm": _Form("Gemm", slice(3), 0, 0),
    "QGemm": _Form("Gemm", slice(0, 4, 3), 8, TensorProto.FLOAT),
    "DynamicQuantizeMatMul": _Form("MatMul", slice(2), 0, 0),
    "MatMulIntegerToFloat": _Form("MatMul", slice(2), 2, 0),
}


# Attributes of contrib ops that their standard forms do not have, by how they begin
_EXTRA = ("channels_last", "activation")


def standard_form(
    node: NodeProto, types: Mapping[str, TypeProto]
) -> tuple[NodeProto, dict[str, TypeProto], int] | None:
    """Return the standard node that infers the output shape of a contrib node.

    Returns
    -------
    tuple of NodeProto, dict, int, or None
        The node, the types of its inputs by name, and the element type of its output; None for
        nodes without a standard form.
    """
    if node.domain != CONTRIB_DOMAIN or node.op_type not in _FORMS:
        return None
    # no standard op has the channels last
    if attribute(node, "channels_last", 0):
        return None
    form = _FORMS[node.op_type]
    # only these operands determine the shape; scales and zero points are left out
    names = list(node.input[form.inputs])
    standard = NodeProto(op_type=form.op, input=names, output=node.output[:1])
    # Identity has no attributes
    if form.op != "Identity":
        standard.attribute.extend(a for a in node.attribute if not a.name.startswith(_EXTRA))
    dtype = form.default_dtype
    if form.dtype_slot < len(node.input):
        kind = types.get(node.input[form.dtype_slot])
        dtype = dtype if kind is None else kind.tensor_type.elem_type
    return standard, {n: _as_float(types[n]) for n in names if n in types}, dtype


def _as_float(kind: TypeProto) -> TypeProto:
    """Return the type with float elements; standard ops do not accept all quantized types."""
    copy = TypeProto()
    copy.CopyFrom(kind)
    copy.tensor_type.elem_type = TensorProto.FLOAT
    return copy
