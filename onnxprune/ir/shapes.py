"""Shapes, types and small known values of every tensor, in one forward pass.

onnx's own inference does each node; here stand only the values that shapes are computed from, so that a chain of
Shape, Gather, Concat and Reshape is followed whatever its arithmetic. A dimension is an int, a symbol (str), or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import (
    GraphProto,
    NodeProto,
    TensorProto,
    TypeProto,
    helper,
    numpy_helper,
    shape_inference,
)

from onnxprune.ir.contrib import standard_form
from onnxprune.ir.io import Model
from onnxprune.ir.nodes import STANDARD_DOMAINS, attribute, nested, subgraphs
from onnxprune.ir.subgraphs import Wire, branch, common, passes, refined, stacked, wires, without
from onnxprune.ir.values import (
    EVALUATE,
    LARGEST_VALUE,
    VALUE_TYPES,
    Dim,
    compact,
    known,
    product,
    quotient,
)

_LIKE_THE_INPUT = (
    "GroupNormalization",
    "MeanVarianceNormalization",
)  # onnx has no inference for them
_UNKNOWN = "?"  # begins the symbol of a length that is not known
QONNX_DOMAINS, QONNX_OPS = (
    ("qonnx.custom_op.general", "onnx.brevitas"),
    ("Quant", "BipolarQuant", "Trunc"),
)  # rounding, in quantized graphs for FPGAs
_NOTHING = TypeProto()
# Ops of which onnx's inference of one node says nothing, and whose first output is like their first input
_LIKE_FIRST = frozenset(
    [
        "GroupNormalization",
        "MeanVarianceNormalization",
        "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
        "Gelu",
        "QuickGelu",
        "FastGelu",
        "BiasGelu",
    ]
)


@dataclass(frozen=True)
class Shapes:
    """What is known of each tensor.

    types: onnx TypeProto by tensor name; values: arrays of known small integers, booleans and floats, dtype object where some
    elements are unknown (None) or symbols (str).
    """

    types: Mapping[str, TypeProto]
    values: Mapping[str, np.ndarray] = field(repr=False)

    def shape(self, name: str) -> tuple[Dim, ...] | None:
        """Dimensions, or None where not even the rank is known."""
        kind = self.types.get(name)
        if (
            kind is None
            or not kind.HasField("tensor_type")
            or not kind.tensor_type.HasField("shape")
        ):
            return None
        return tuple(_dim(d) for d in kind.tensor_type.shape.dim)

    def dtype(self, name: str) -> int:
        """TensorProto.DataType; 0 where unknown."""
        kind = self.types.get(name)
        return (
            kind.tensor_type.elem_type if kind is not None and kind.HasField("tensor_type") else 0
        )

    def value(self, name: str) -> np.ndarray | None:
        """The value where every element is known."""
        value = self.values.get(name)
        return value if value is not None and value.dtype != object else None


Told = Callable[[NodeProto, Shapes], Sequence[tuple[Dim, ...] | None]]


def infer(model: Model, told: Told | None = None) -> Shapes:
    """Shapes of every tensor of the main graph and of the bodies inside of it. told: of the outputs of nodes about which nothing else is known."""
    run = _Inference(model, told)
    run.graph(model.proto.graph)
    return Shapes(run.types, run.values)


class _Inference:
    """State of one pass."""

    def __init__(self, model: Model, told: Told | None) -> None:
        self.told = told
        self.types: dict[str, TypeProto] = {}
        self.values: dict[str, np.ndarray] = {}
        self.opsets = list(model.proto.opset_import)
        self.opset = model.opset
        self.ir_version = model.proto.ir_version
        self.declared: dict[str, TypeProto] = {}
        self.unknown = 0
        for name, weight in model.weights.items():
            self.types[name] = helper.make_tensor_type_proto(weight.dtype, weight.shape)
            if int(np.prod(weight.shape)) <= LARGEST_VALUE and weight.dtype in VALUE_TYPES:
                self.values[name] = weight.array()

    def graph(self, graph: GraphProto) -> None:
        for info in graph.input:
            self.types.setdefault(info.name, info.type)
        for info in (*graph.value_info, *graph.output):
            self.declared[info.name] = info.type
        for tensor in graph.initializer:
            if tensor.name not in self.types:
                self.types[tensor.name] = helper.make_tensor_type_proto(
                    tensor.data_type, tensor.dims
                )
        for node in graph.node:
            self.node(node)

    def node(self, node: NodeProto) -> None:
        found = self.bodies(node) if subgraphs(node) else self.infer_types(node)
        for name in node.output:
            kind = found.get(name)
            if (
                (kind is None or not _has_shape(kind))
                and node.input
                and name == node.output[0]
                and node.op_type in _LIKE_FIRST
            ):
                kind = self.types.get(node.input[0])
            if (kind is None or not _has_shape(kind)) and name in self.declared:
                kind = self.declared[name]
            if name and kind is not None:
                self.types[name] = kind
        if (
            self.told is not None
            and node.input
            and any(n and not _has_shape(self.types.get(n, _NOTHING)) for n in node.output)
        ):
            self.ask(node, self.told)
        self.evaluate(node)
        self.shape_from_value(node)
        for name in node.output:
            if name in self.types:
                self.types[name] = self.named(self.types[name])

    def ask(self, node: NodeProto, told: Told) -> None:
        """Shapes from outside; elements are those of the first input where nothing says otherwise."""
        known = Shapes(self.types, self.values)
        for name, dims in zip(node.output, told(node, known), strict=False):
            if name and dims is not None and known.shape(name) is None:
                self.types[name] = helper.make_tensor_type_proto(
                    known.dtype(name) or known.dtype(node.input[0]), dims
                )

    def named(self, kind: TypeProto) -> TypeProto:
        """Unknown dimensions get symbols of their own, so that what is computed from them can be compared."""
        if not _has_shape(kind) or all(_dim(d) is not None for d in kind.tensor_type.shape.dim):
            return kind
        copy = TypeProto()
        copy.CopyFrom(kind)
        for d in copy.tensor_type.shape.dim:
            if _dim(d) is None:
                self.unknown += 1
                d.dim_param = f"{_UNKNOWN}{self.unknown}"
        return copy

    def bodies(self, node: NodeProto) -> Mapping[str, TypeProto]:
        """Types of what is in the bodies of a node, and of its outputs."""
        graphs, found = subgraphs(node), wires(node, self.opset)
        entering = {
            w: self.types.get(node.input[w.slot])
            for w in found or ()
            if w.inside and node.input[w.slot]
        }
        declared = {i.name: i.type for g in graphs for i in g.input}
        for wire, kind in entering.items():
            kind = kind if kind is None or wire.axis is None else without(kind, wire.axis)
            self.types[wire.inside] = refined(kind, declared[wire.inside])  # type: ignore[assignment]
        while True:
            for graph in graphs:
                self.graph(graph)
            states = {
                w.inside: common([self.types[w.inside], self.types.get(w.yields)])
                for w in found or ()
                if w.inside in self.types and w.yields
            }
            wider = {
                name: kind
                for name, kind in states.items()
                if kind is not None and kind != self.types[name]
            }
            if not wider:
                return self.results(node, found or [])
            kept = {n: self.types[n] for n in {w.inside for w in entering}}
            for name in [
                n
                for graph in graphs
                for g in nested(graph)
                for n in (*(i.name for i in g.input), *(o for node in g.node for o in node.output))
            ]:
                self.types.pop(name, None)
                self.values.pop(name, None)
            self.types.update(kept | wider)

    def results(self, node: NodeProto, found: list[Wire]) -> Mapping[str, TypeProto]:
        """Outputs of a node by what its bodies yield."""
        chosen = self.values.get(node.input[0]) if node.op_type == "If" and node.input else None
        if found and chosen is not None and chosen.dtype != object and chosen.size == 1:
            names = {o.name for o in branch(node, chosen.item()).output}
            found = [w for w in found if w.yields in names]
            self.values.update(
                {
                    w.result: self.values[w.yields]
                    for w in found
                    if w.result and w.yields in self.values
                }
            )
        length = (
            passes(node, found, self.types, self.values)
            if any(w.axis is not None for w in found)
            else None
        )
        kinds: dict[str, list[TypeProto | None]] = {}
        for wire in found:
            if wire.result:
                kind = self.types.get(wire.inside or wire.yields)
                kinds.setdefault(wire.result, []).append(
                    kind if kind is None or wire.axis is None else stacked(kind, wire.axis, length)
                )
        types = {
            name: refined(common(made), self.declared.get(name)) for name, made in kinds.items()
        }
        return {name: kind for name, kind in types.items() if kind is not None}

    def infer_types(self, node: NodeProto) -> Mapping[str, TypeProto]:
        """Onnx's inference of one node; nothing where it does not know."""
        if (
            node.op_type == "MultiHeadAttention"
            and len(node.input) > 2
            or node.op_type == "Attention"
            and node.domain not in STANDARD_DOMAINS
        ):
            return self.attended(node)
        contrib = standard_form(node, self.types)
        if contrib is not None:
            return self.as_standard(*contrib)
        if (
            node.op_type in _LIKE_THE_INPUT
            or node.domain in QONNX_DOMAINS
            and node.op_type in QONNX_OPS
        ):
            return (
                {node.output[0]: self.types[node.input[0]]}
                if node.input and node.input[0] in self.types
                else {}
            )
        if node.domain not in STANDARD_DOMAINS:
            return {}
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opset, "")
            kinds = {n: self.types[n] for n in node.input if n in self.types}
            data = {
                n: numpy_helper.from_array(np.ascontiguousarray(v), n)
                for n in node.input
                if n in _known(self.values, n)
                for v in [self.values[n]]
            }
            return shape_inference.infer_node_outputs(
                schema, node, kinds, data, {}, self.opsets, self.ir_version
            )
        except (
            Exception
        ):  # onnx raises RuntimeError, ValueError and its own errors here; unknown is an answer
            return {}

    def as_standard(
        self, node: NodeProto, kinds: dict[str, TypeProto], dtype: int
    ) -> Mapping[str, TypeProto]:
        """Shape that a standard node gives, with another type."""
        try:
            found = dict(
                shape_inference.infer_node_outputs(
                    onnx.defs.get_schema(node.op_type, self.opset, ""),
                    node,
                    kinds,
                    {},
                    {},
                    self.opsets,
                    self.ir_version,
                )
            )
        except Exception:  # as in infer_types
            return {}
        for kind in found.values():
            kind.tensor_type.elem_type = dtype
        return found

    def attended(self, node: NodeProto) -> Mapping[str, TypeProto]:
        """Positions of the query, channels of the value; where one weight makes queries, keys and values, a third of its columns."""
        known = Shapes(self.types, self.values)
        packed = node.op_type == "Attention"
        query, value = known.shape(node.input[0]), known.shape(node.input[1 if packed else 2])
        if query is None or value is None or len(query) != 3 or len(value) != (2 if packed else 3):
            return {}
        sizes = attribute(node, "qkv_hidden_sizes")
        width = (
            value[-1]
            if not packed
            else sizes[2]
            if sizes
            else value[-1] // 3
            if isinstance(value[-1], int)
            else None
        )
        return {
            node.output[0]: helper.make_tensor_type_proto(
                known.dtype(node.input[0]), [*query[:2], width]
            )
        }

    def evaluate(self, node: NodeProto) -> None:
        """Values of the outputs, where an entry of EVALUATE computes them."""
        if node.domain not in STANDARD_DOMAINS or len([o for o in node.output if o]) != 1:
            return
        if node.op_type in ("Shape", "Size"):
            value = self.shape_value(node)
        else:
            function = EVALUATE.get(node.op_type)
            operands = [self.values.get(n) if n else None for n in node.input]
            if function is None or any(
                n and v is None for n, v in zip(node.input, operands, strict=False)
            ):
                return
            try:
                with np.errstate(all="ignore"):
                    value = function(node, *operands)
            except Exception:  # wrong shapes or types in a foreign graph: the value stays unknown
                return
        if value is not None and np.size(value) <= LARGEST_VALUE:
            found = np.asarray(value)
            self.values[node.output[0]] = (
                np.array(value, object) if found.dtype.kind == "U" else found
            )  # one symbol alone
            kind = self.types.get(node.output[0])
            if found.dtype.kind in "biuf" and (kind is None or not _has_shape(kind)):
                self.types[node.output[0]] = helper.make_tensor_type_proto(
                    helper.np_dtype_to_tensor_dtype(found.dtype), found.shape
                )

    def shape_value(self, node: NodeProto) -> np.ndarray | None:
        shape = Shapes(self.types, self.values).shape(node.input[0])
        if shape is None:
            return None
        if node.op_type == "Size":
            return np.array(np.prod(shape, dtype=np.int64), np.int64) if known(shape) else None
        return compact(
            np.array(
                shape[attribute(node, "start", 0) : attribute(node, "end", len(shape))], object
            )
        )

    def range_length(self, node: NodeProto) -> None:
        """Counting from 0 to a length gives as many."""
        bounds = [
            v.item() if v is not None and v.size == 1 else None
            for v in (self.values.get(n) for n in node.input)
        ]
        if len(bounds) == 3 and bounds[0] == 0 and isinstance(bounds[1], str) and bounds[2] == 1:
            kind = self.types.get(node.input[0])
            self.types[node.output[0]] = helper.make_tensor_type_proto(
                kind.tensor_type.elem_type if kind is not None else TensorProto.INT64, [bounds[1]]
            )

    def lengths_by_axis(self, node: NodeProto) -> None:
        """Slice and Tile by computed numbers: the lengths that these do not concern."""
        known = Shapes(self.types, self.values)
        before, after = known.shape(node.input[0]), known.shape(node.output[0])
        if before is None or after is not None and all(isinstance(d, int) for d in after):
            return
        numbers = (
            self.values.get(node.input[1 if node.op_type == "Tile" else 3])
            if len(node.input) > (node.op_type == "Slice") * 2 + 1
            else None
        )
        if numbers is None or node.op_type == "Slice" and numbers.dtype == object:
            return
        if node.op_type == "Tile":
            dims = [
                None if d is None or r is None else product([d, r])
                for d, r in zip(before, numbers.tolist(), strict=False)
            ]
        else:
            sliced = {int(a) % len(before) for a in numbers}
            dims = [
                (after[i] if after is not None else None) if i in sliced else d
                for i, d in enumerate(before)
            ]
        self.types[node.output[0]] = helper.make_tensor_type_proto(known.dtype(node.input[0]), dims)

    def shape_from_value(self, node: NodeProto) -> None:
        """Output shape where the target is known in part, which onnx's inference does not use."""
        if node.op_type == "Range":
            self.range_length(node)
        elif node.op_type in ("Slice", "Tile") and len(node.input) > 1:
            self.lengths_by_axis(node)
        slot = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3}.get(node.op_type)
        if node.op_type == "Resize" and attribute(node, "axes") is not None:
            return
        if slot is None or len(node.input) <= slot or node.input[slot] not in self.values:
            return
        target = self.values[node.input[slot]]
        if target.dtype != object or target.ndim != 1:
            return
        inputs = Shapes(self.types, self.values).shape(node.input[0])
        dims: list[Dim] = list(target)
        if node.op_type == "Reshape":
            dims = _reshape(dims, inputs, attribute(node, "allowzero", 0))
        elif node.op_type == "Expand":
            dims = _broadcast(inputs, dims) if inputs is not None else [None] * len(dims)
        kind = self.types.get(node.input[0])
        dtype = kind.tensor_type.elem_type if kind is not None and slot else TensorProto.FLOAT
        if node.op_type == "ConstantOfShape":
            fill = attribute(node, "value")
            dtype = fill.data_type if fill is not None else TensorProto.FLOAT
        self.types[node.output[0]] = helper.make_tensor_type_proto(dtype, dims)


def _reshape(target: list[Dim], inputs: tuple[Dim, ...] | None, allowzero: int) -> list[Dim]:
    """Dimensions that a Reshape target gives, 0 and -1 resolved where that is possible."""
    dims = [
        inputs[i] if d == 0 and not allowzero and inputs is not None and i < len(inputs) else d
        for i, d in enumerate(target)
    ]
    if -1 in dims:
        free = None
        if inputs is not None and None not in inputs and not any(d is None for d in dims):
            free = quotient(product(inputs), product([d for d in dims if d != -1]))
        dims[dims.index(-1)] = free
    return dims


def _broadcast(a: tuple[Dim, ...], b: list[Dim]) -> list[Dim]:
    """Dimensions of two shapes broadcast; None where that is not known."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + tuple(a), [1] * (rank - len(b)) + list(b), strict=False)
    return [
        y
        if x == 1
        else x
        if y == 1 or x == y or isinstance(x, int)
        else y
        if isinstance(y, int)
        else None
        for x, y in pairs
    ]


def _dim(d: Any) -> Dim:
    return (
        d.dim_value
        if d.HasField("dim_value")
        else d.dim_param
        if d.HasField("dim_param") and d.dim_param
        else None
    )


def _has_shape(kind: TypeProto) -> bool:
    return kind.HasField("tensor_type") and kind.tensor_type.HasField("shape")


def _known(values: Mapping[str, np.ndarray], name: str) -> tuple[str, ...]:
    value = values.get(name)
    return (name,) if value is not None and value.dtype != object else ()
