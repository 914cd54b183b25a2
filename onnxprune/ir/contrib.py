"""Standard ops with the same output shape as onnxruntime's contrib ops, for shape inference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from onnx import NodeProto, TensorProto, TypeProto

from onnxprune.ir.nodes import attribute
from onnxprune.ir.shapes import has_shape

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
    **dict.fromkeys(("FusedConv", "NhwcConv", "NhwcFusedConv"), _Form("Conv", slice(2), 0, 0)),
    "QLinearConv": _Form("Conv", slice(0, 4, 3), 0, 0),
    "NhwcMaxPool": _Form("MaxPool", slice(1), 0, 0),
    "FusedGemm": _Form("Gemm", slice(3), 0, 0),
    "QGemm": _Form("Gemm", slice(0, 4, 3), 8, TensorProto.FLOAT),
    **dict.fromkeys(
        ("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "GemmFastGelu"),
        _Form("MatMul", slice(2), 0, 0),
    ),
    "DynamicQuantizeMatMul": _Form("MatMul", slice(2), 0, 0),
    "MatMulIntegerToFloat": _Form("MatMul", slice(2), 2, 0),
}


# Contrib op without a standard form -> input whose element type the output has, if not the first
DTYPE_SLOTS = {
    "EmbedLayerNormalization": 2,
    "QEmbedLayerNormalization": 8,
    "QAttention": 3,
    "GatherBlockQuantized": 2,
}

# Attributes of contrib ops that their standard forms do not have, by how they begin
_EXTRA = ("channels_last", "activation", "trans", "alpha")


class StandardForm(NamedTuple):
    """Standard node that infers the output shape of a contrib node.

    Attributes
    ----------
    node
        The standard node.
    types
        Types of its inputs by name, channels first.
    dtype
        Element type of its output.
    channels_last
        Whether the contrib node has its channels last, so that the inferred shape is permuted.
    """

    node: NodeProto
    types: dict[str, TypeProto]
    dtype: int
    channels_last: bool


def has_channels_last(node: NodeProto) -> bool:
    """Return whether a contrib node has the channels of its data as the last axis."""
    return node.op_type.startswith("Nhwc") or bool(attribute(node, "channels_last", 0))


def standard_form(node: NodeProto, types: Mapping[str, TypeProto]) -> StandardForm | None:
    """Return the standard form of a contrib node; None if it has none."""
    if node.domain != CONTRIB_DOMAIN or node.op_type not in _FORMS:
        return None
    form = _FORMS[node.op_type]
    # only these operands determine the shape; scales and zero points are left out
    names = list(node.input[form.inputs])
    standard = NodeProto(op_type=form.op, input=names, output=node.output[:1])
    # Identity has no attributes
    if form.op != "Identity":
        extra = _EXTRA if form.op == "MatMul" else _EXTRA[:2]
        standard.attribute.extend(a for a in node.attribute if not a.name.startswith(extra))
    dtype = form.default_dtype
    # an input that is absent leaves the default type of the operator
    if form.dtype_slot < len(node.input):
        kind = types.get(node.input[form.dtype_slot])
        dtype = dtype if kind is None else kind.tensor_type.elem_type
    kinds = {n: _as_float(types[n]) for n in names if n in types}
    # FusedMatMul may transpose its operands, which MatMul cannot
    for name, letter in zip(names, "AB", strict=False) if form.op == "MatMul" else ():
        rank = len(kinds[name].tensor_type.shape.dim) if name in kinds else 0
        order = matmul_order(node, letter, rank)
        if order != list(range(rank)):
            kinds[name] = permute(kinds[name], order)
    # standard operators have channels first
    last = has_channels_last(node) and form.op != "Identity"
    if last and names[0] in kinds and has_shape(kinds[names[0]]):
        kinds[names[0]] = move_channels(kinds[names[0]], -1, 1)
    return StandardForm(standard, kinds, dtype, last)


def matmul_order(node: NodeProto, letter: str, rank: int) -> list[int]:
    """Return the axes of operand "A" or "B" of FusedMatMul in the order of MatMul.

    With transBatch they are (rows, batch axes, columns), with trans rows and columns are swapped.
    Vectors have no axes to transpose.
    """
    order = list(range(rank))
    if rank < 2:
        return order
    if attribute(node, f"transBatch{letter}", 0):
        order = [*order[1:-1], 0, rank - 1]
    if attribute(node, f"trans{letter}", 0):
        order[-2:] = [order[-1], order[-2]]
    return order


def permute(kind: TypeProto, order: Sequence[int]) -> TypeProto:
    """Return a type with its axes in another order."""
    dims = list(kind.tensor_type.shape.dim)
    permuted = TypeProto()
    permuted.CopyFrom(kind)
    del permuted.tensor_type.shape.dim[:]
    permuted.tensor_type.shape.dim.extend(dims[axis] for axis in order)
    return permuted


def move_channels(kind: TypeProto, source: int, target: int) -> TypeProto:
    """Return a type with the axis `source` moved to the index `target`."""
    order = list(range(len(kind.tensor_type.shape.dim)))
    channels = order.pop(source)
    order.insert(len(order) + 1 + target if target < 0 else target, channels)
    return permute(kind, order)


def _as_float(kind: TypeProto) -> TypeProto:
    """Return the type with float elements; standard ops do not accept all quantized types."""
    copy = TypeProto()
    copy.CopyFrom(kind)
    copy.tensor_type.elem_type = TensorProto.FLOAT
    return copy
