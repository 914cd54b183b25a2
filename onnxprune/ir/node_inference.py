"""Inference of one node: output types by onnx's own rules, and what those leave open.

onnx infers the outputs of a single node well, but knows nothing about ops without a schema and does
not follow shapes that a graph computes. Both are completed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper, shape_inference

from onnxprune.ir.contrib import StandardForm, move_channels, standard_form
from onnxprune.ir.equations import exact_quotients, substitute
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute
from onnxprune.ir.shapes import Shapes, has_shape
from onnxprune.ir.values import (
    EVALUATE,
    LARGEST_VALUE,
    Dim,
    compact,
    is_static,
    product,
    quotient,
)
from onnxprune.ir.windows import WINDOWED, windowed_type

# Quantized graphs for FPGAs: these ops only round, so the type does not change.
QONNX_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas")
QONNX_OPS = ("Quant", "BipolarQuant", "Trunc")
# Ops without inference in onnx: the output has the type of the first input.
_UNARY_LIKE = ("GroupNormalization", "MeanVarianceNormalization")
# The same where inference gives no shape: some of these have a schema in newer operator sets.
FIRST_INPUT_FALLBACK = frozenset(
    """
    GroupNormalization LayerNormalization MeanVarianceNormalization SimplifiedLayerNormalization
    SkipLayerNormalization SkipSimplifiedLayerNormalization Gelu QuickGelu FastGelu BiasGelu
    RotaryEmbedding Scaler Normalizer Imputer
    """.split()
)
_FLOAT_RESULT = ("Scaler", "Normalizer")  # of ai.onnx.ml, whatever the type of the input
# Input that holds the target shape, by op.
_TARGET_SLOT = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}


def like_first_input(node: NodeProto, kind: TypeProto | None) -> TypeProto | None:
    """Return the type of an output of an operator of FIRST_INPUT_FALLBACK by that of its input."""
    if kind is None or node.op_type not in _FLOAT_RESULT:
        return kind
    result = TypeProto()
    result.CopyFrom(kind)
    result.tensor_type.elem_type = TensorProto.FLOAT
    return result


@dataclass(frozen=True)
class Versions:
    """Versions that onnx's inference needs.

    Attributes
    ----------
    opset
        Version of the default operator set.
    imports
        All operator sets of the model (OperatorSetIdProto).
    ir_version
        IR version of the model.
    """

    opset: int
    imports: list[Any]
    ir_version: int


# operator -> (axis of its first operand, axis of its second one) that have equal lengths
WIDTHS = {
    "Conv": (1, 1),
    "ConvTranspose": (1, 0),
    "MatMul": (-1, -2),
    "Gemm": (1, 0),
    "BatchNormalization": (1, 0),
    "InstanceNormalization": (1, 0),
    "LayerNormalization": (-1, -1),
    "RMSNormalization": (-1, -1),
    "LSTM": (2, 2),
    "GRU": (2, 2),
    "RNN": (2, 2),
}


def infer_node(node: NodeProto, known: Shapes, versions: Versions) -> Mapping[str, TypeProto]:
    """Return the types of a node's outputs by name; outputs without a known type are absent."""
    # attention has no inference in onnx for these forms
    if _is_fused_attention(node):
        return _attention_type(node, known)
    contrib = standard_form(node, known.types)
    if contrib is not None:
        return _infer_as_standard(contrib, versions)
    if node.op_type in _UNARY_LIKE or (node.domain in QONNX_DOMAINS and node.op_type in QONNX_OPS):
        kind = known.types.get(node.input[0]) if node.input else None
        return {} if kind is None else {node.output[0]: kind}
    if node.domain not in STANDARD_DOMAINS:
        return {}
    try:
        kinds = {n: known.types[n] for n in node.input if n in known.types}
        constants = {}
        for name in node.input:
            value = known.value(name)
            if value is not None:
                # ascontiguousarray makes a vector of a scalar, which onnx may reject
                array = np.ascontiguousarray(value).reshape(value.shape)
                constants[name] = numpy_helper.from_array(array, name)
        return _infer_by_schema(node, kinds, constants, versions)
    # onnx raises RuntimeError, ValueError and its own errors: the type is then unknown
    except Exception:
        return _squeeze_any(node, known)


def _squeeze_any(node: NodeProto, known: Shapes) -> Mapping[str, TypeProto]:
    """Return the type of a Squeeze of an axis that is longer than 1; {} for other nodes.

    A branch that does not run at the sizes of the inputs is counted although it would fail.
    """
    dims = known.shape(node.input[0]) if node.op_type == "Squeeze" else None
    axes = attribute(node, "axes")
    if axes is None and len(node.input) > 1:
        axes = known.value(node.input[1])
    if dims is None or axes is None or not all(-len(dims) <= a < len(dims) for a in axes):
        return {}
    squeezed = {int(a) % len(dims) for a in axes}
    rest = [d for i, d in enumerate(dims) if i not in squeezed]
    return {node.output[0]: helper.make_tensor_type_proto(known.dtype(node.input[0]), rest)}


def _infer_by_schema(
    node: NodeProto,
    kinds: dict[str, TypeProto],
    constants: dict[str, TensorProto],
    versions: Versions,
) -> Mapping[str, TypeProto]:
    """Run onnx's inference of one node of the default operator set."""
    schema = onnx.defs.get_schema(node.op_type, versions.opset, "")
    return shape_inference.infer_node_outputs(
        schema, node, kinds, constants, {}, versions.imports, versions.ir_version
    )


def _infer_as_standard(form: StandardForm, versions: Versions) -> Mapping[str, TypeProto]:
    """Infer the shape as for a standard node, then set the element type."""
    try:
        types = dict(_infer_by_schema(form.node, form.types, {}, versions))
    except Exception:  # as in infer_node
        return {}
    for kind in types.values():
        kind.tensor_type.elem_type = form.dtype
    if form.channels_last:
        return {n: move_channels(kind, 1, -1) for n, kind in types.items() if has_shape(kind)}
    return types


def _is_fused_attention(node: NodeProto) -> bool:
    if node.op_type == "MultiHeadAttention":
        return len(node.input) > 2
    return node.op_type == "Attention" and node.domain not in STANDARD_DOMAINS


def _attention_type(node: NodeProto, known: Shapes) -> Mapping[str, TypeProto]:
    """Return (batch, query positions, value channels), the type of fused attention's output.

    With packed weights (op Attention) one weight projects to queries, keys and values, so that
    the value channels are a third of its columns.
    """
    packed = node.op_type == "Attention"
    query, value = known.shape(node.input[0]), known.shape(node.input[1 if packed else 2])
    if query is None or value is None or len(query) != 3 or len(value) != (2 if packed else 3):
        return {}
    width: Dim = value[-1]
    if packed:
        width = width // 3 if isinstance(width, int) else None
        sizes = attribute(node, "qkv_hidden_sizes")
        if sizes:
            width = sizes[2]
    dims = [*query[:2], width]
    return {node.output[0]: helper.make_tensor_type_proto(known.dtype(node.input[0]), dims)}


def equal_products(node: NodeProto, known: Shapes) -> Iterator[tuple[Sequence[Dim], Sequence[Dim]]]:
    """Yield pairs of lists of lengths whose products are equal if the node runs.

    A Reshape neither adds nor drops elements; weights dictate the width of what they multiply.
    """
    op = node.op_type
    if (op not in WIDTHS and op != "Reshape") or node.domain not in STANDARD_DOMAINS:
        return
    shape = known.shape(node.input[0]) if node.input else None
    if shape is None:
        return
    if op == "Reshape":
        after = known.shape(node.output[0])
        # nothing follows from numbers alone
        if after is not None and not (is_static(shape) and is_static(after)):
            yield shape, after
        return
    if is_static(shape) or len(node.input) < 2:
        return
    axis, weight_axis = WIDTHS[op]
    weight = known.shape(node.input[1])
    if op == "Gemm":
        axis = 0 if attribute(node, "transA", 0) else 1
        weight_axis = 1 if attribute(node, "transB", 0) else 0
    elif weight is not None and len(weight) == 1:
        weight_axis = 0
    if weight is None or not max(axis, -axis - 1) < len(shape) or weight_axis >= len(weight):
        return
    # two activations of unknown lengths are left alone: they may broadcast in ways of their own
    if isinstance(weight[weight_axis], int):
        groups = attribute(node, "group", 1) if op == "Conv" else 1
        yield [shape[axis]], [weight[weight_axis], groups]


def evaluate(node: NodeProto, known: Shapes) -> np.ndarray | None:
    """Return the value of a node's only output; None if unknown or over LARGEST_VALUE elements."""
    op = node.op_type
    function = EVALUATE.get(op)
    measures = op in ("Shape", "Size")
    if (function is None and not measures) or node.domain not in STANDARD_DOMAINS:
        return None
    if sum(map(bool, node.output)) != 1:
        return None
    if measures or function is None:
        value = _shape_as_value(node, known)
    else:
        operands = [known.values.get(n) if n else None for n in node.input]
        if any(n and v is None for n, v in zip(node.input, operands, strict=True)):
            return None
        try:
            with np.errstate(all="ignore"):
                value = function(node, *operands)
        # an invalid graph may give operands of wrong shapes or types: the value stays unknown
        except Exception:
            return None
    if value is None or np.size(value) > LARGEST_VALUE:
        return None
    array = np.asarray(value)
    # a single symbol would become a numpy string; unknown elements are kept in object arrays
    return np.array(value, object) if array.dtype.kind == "U" else array


def _shape_as_value(node: NodeProto, known: Shapes) -> np.ndarray | None:
    """Return what a Shape or Size node yields."""
    shape = known.shape(node.input[0])
    if shape is None:
        return None
    if node.op_type == "Size":
        return None if None in shape else compact(np.array(product(shape), object))
    part = shape[attribute(node, "start", 0) : attribute(node, "end", len(shape))]
    return compact(np.array(part, object))


def type_from_values(node: NodeProto, known: Shapes) -> TypeProto | None:
    """Return the output type that follows from computed shapes, which onnx does not use.

    None if the type that is already known cannot be improved.
    """
    if node.op_type == "Range":
        return _infer_range_type(node, known)
    if node.op_type in WINDOWED and node.domain in STANDARD_DOMAINS:
        windowed = windowed_type(node, known)
        if windowed is not None:
            return windowed
    if node.op_type in ("Compress", "MaxUnpool"):
        return _infer_selected_type(node, known)
    if node.op_type in ("Slice", "Tile") and len(node.input) > 1:
        return _partly_sliced_type(node, known)
    # with the axes of Resize listed, its target has fewer entries than the data has axes
    slot = _TARGET_SLOT.get(node.op_type)
    if slot is None or (node.op_type == "Resize" and attribute(node, "axes") is not None):
        return None
    if len(node.input) <= slot or node.input[slot] not in known.values:
        return None
    target = known.values[node.input[slot]]
    inputs = known.shape(node.input[0])
    # fully known targets are left to onnx's inference, but for products of symbols
    symbolic = node.op_type == "Reshape" and inputs is not None and not is_static(inputs)
    left_to_onnx = target.dtype != object and not (symbolic and _is_target(target))
    if left_to_onnx or target.ndim != 1:
        return None
    dims: list[Dim] = target.tolist()
    if node.op_type == "Reshape":
        # lengths that equal others are spelled alike, so that quotients are exact
        inputs = None if inputs is None else tuple(substitute(inputs, known.equal))
        dims = substitute(dims, known.equal)
        dims = _resolve_reshape(dims, inputs, attribute(node, "allowzero", 0))
    elif node.op_type == "Expand":
        dims = _broadcast(inputs, dims) if inputs is not None else [None] * len(dims)
    kind = known.types.get(node.input[0])
    dtype = kind.tensor_type.elem_type if kind is not None and slot else TensorProto.FLOAT
    # its operand is the shape: the type is that of the value it fills in
    if node.op_type == "ConstantOfShape":
        fill = attribute(node, "value")
        dtype = fill.data_type if fill is not None else TensorProto.FLOAT
    return helper.make_tensor_type_proto(dtype, dims)


def _infer_selected_type(node: NodeProto, known: Shapes) -> TypeProto | None:
    """Return the type of a Compress by a known condition, or a MaxUnpool to a known shape."""
    inputs, last = known.shape(node.input[0]), known.value(node.input[-1])
    if inputs is None or last is None:
        return None
    if node.op_type == "MaxUnpool":
        dims: list[Dim] = [int(d) for d in last.ravel()]
        if len(node.input) < 3 or len(dims) != len(inputs):
            return None
    else:
        axis = attribute(node, "axis")
        if axis is None or not isinstance(inputs[axis], int):
            return None
        dims = list(inputs)
        dims[axis] = int(np.count_nonzero(last[: inputs[axis]]))
    return helper.make_tensor_type_proto(known.dtype(node.input[0]), dims)


def _infer_range_type(node: NodeProto, known: Shapes) -> TypeProto | None:
    """Return the type of Range(0, n, 1) for a symbolic n: it has n elements."""
    bounds = []
    for name in node.input:
        value = known.values.get(name)
        bounds.append(value.item() if value is not None and value.size == 1 else None)
    # other starts and steps give a number of elements that is no symbol
    if len(bounds) != 3 or bounds[0] != 0 or not isinstance(bounds[1], str) or bounds[2] != 1:
        return None
    kind = known.types.get(node.input[0])
    dtype = kind.tensor_type.elem_type if kind is not None else TensorProto.INT64
    return helper.make_tensor_type_proto(dtype, [bounds[1]])


def _partly_sliced_type(node: NodeProto, known: Shapes) -> TypeProto | None:
    """Return the type of a Slice or Tile by computed bounds: other axes keep their length."""
    before, after = known.shape(node.input[0]), known.shape(node.output[0])
    if before is None or (after is not None and is_static(after)):
        return None
    slot = 1 if node.op_type == "Tile" else 3  # the repeats, or the axes
    numbers = known.values.get(node.input[slot]) if len(node.input) > slot else None
    if numbers is None or (node.op_type == "Slice" and numbers.dtype == object):
        return None
    dims: list[Dim] = []
    if node.op_type == "Tile":
        for d, repeats in zip(before, numbers.tolist(), strict=False):
            dims.append(None if d is None or repeats is None else product([d, repeats]))
    else:
        sliced = {int(a) % len(before) for a in numbers}
        for i, d in enumerate(before):
            if i in sliced:
                d = after[i] if after is not None else None
            dims.append(d)
    return helper.make_tensor_type_proto(known.dtype(node.input[0]), dims)


def _is_target(target: np.ndarray) -> bool:
    """Return whether numbers are a valid target of a Reshape."""
    return target.dtype.kind == "i" and bool((target >= -1).all() and (target == -1).sum() <= 1)


def _resolve_reshape(
    target: Sequence[Dim], inputs: tuple[Dim, ...] | None, allowzero: int
) -> list[Dim]:
    """Return the dimensions that a Reshape target gives, 0 and -1 resolved if possible."""
    dims = list(target)
    # 0 copies the length of the input at the same place
    if inputs is not None and not allowzero:
        for i, d in enumerate(dims[: len(inputs)]):
            if d == 0:
                dims[i] = inputs[i]
    if -1 in dims:
        free = None
        if inputs is not None and None not in inputs and None not in dims:
            rest = [d for d in dims if d != -1]
            free = quotient(product(inputs), product(rest))
            if free is None:
                # sizes divided by the sides of windows are meant to be multiples of them
                meant = substitute(inputs, exact_quotients(rest))
                free = quotient(product(meant), product(rest))
        dims[dims.index(-1)] = free
    return dims


def _broadcast(a: Sequence[Dim], b: Sequence[Dim]) -> list[Dim]:
    """Return the dimensions of two shapes broadcast, None where unknown."""
    rank = max(len(a), len(b))
    left = [1] * (rank - len(a)) + list(a)
    right = [1] * (rank - len(b)) + list(b)
    return [_broadcast_dimension(x, y) for x, y in zip(left, right, strict=True)]


def _broadcast_dimension(x: Dim, y: Dim) -> Dim:
    if x == 1:
        return y
    # a number above 1 is the length, whatever the other one may be
    if y == 1 or x == y or isinstance(x, int):
        return x
    return y if isinstance(y, int) else None


def value_type(value: np.ndarray, kind: TypeProto | None) -> TypeProto | None:
    """Return the type that a computed value adds to `kind`; None if `kind` has a shape already."""
    if value.dtype.kind not in "biuf" or (kind is not None and has_shape(kind)):
        return None
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
