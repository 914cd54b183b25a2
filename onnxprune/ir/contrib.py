"""onnxruntime's own ops as the standard ones whose output has the same shape, for inference of it."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto, TensorProto, TypeProto

from onnxprune.ir.nodes import attribute

CONTRIB_DOMAIN = "com.microsoft"
# op -> (standard op, inputs that it takes, input that tells the type of the output's elements, that type where the input is absent)
_FORMS: dict[str, tuple[str, slice, int, int]] = {
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), ("Add", slice(0, 4, 3), 0, 0)),
    **dict.fromkeys(
        ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"), ("Identity", slice(1), 0, 0)
    ),
    "QLinearConcat": ("Concat", slice(2, None, 3), 2, 0),
    "QLinearWhere": ("Add", slice(1, 5, 3), 1, 0),
    "QLinearAveragePool": ("AveragePool", slice(1), 0, 0),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", slice(1), 0, 0),
    "QuantizeLinear": ("Identity", slice(1), 2, TensorProto.UINT8),
    "DequantizeLinear": ("Identity", slice(1), 1, 0),
    "QGemm": ("Gemm", slice(0, 4, 3), 8, TensorProto.FLOAT),
    "DynamicQuantizeMatMul": ("MatMul", slice(2), 0, 0),
    "MatMulIntegerToFloat": ("MatMul", slice(2), 2, 0),
}


def standard_form(
    node: NodeProto, types: Mapping[str, TypeProto]
) -> tuple[NodeProto, dict[str, TypeProto], int] | None:
    """(standard node, types of its inputs, type of its output's elements); None for nodes without one."""
    if (
        node.domain != CONTRIB_DOMAIN
        or node.op_type not in _FORMS
        or attribute(node, "channels_last", 0)
    ):
        return None
    op, slots, typed, otherwise = _FORMS[node.op_type]
    names = list(node.input[slots])
    told = types.get(node.input[typed]) if typed < len(node.input) else None
    standard = NodeProto(op_type=op, input=names, output=node.output[:1])
    standard.attribute.extend(
        a for a in node.attribute if op != "Identity" and a.name != "channels_last"
    )
    return (
        standard,
        {n: _as_float(types[n]) for n in names if n in types},
        told.tensor_type.elem_type if told is not None else otherwise,
    )


def _as_float(kind: TypeProto) -> TypeProto:
    """The same shape; standard ops are not defined on all quantized types."""
    copy = TypeProto()
    copy.CopyFrom(kind)
    copy.tensor_type.elem_type = TensorProto.FLOAT
    return copy
