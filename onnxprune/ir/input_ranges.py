"""Ranges of integer and boolean inputs that a graph accepts.

An index must lie within the axis that it selects from, a length within the sequence, and a mask
keeps all positions. Inputs are followed forward through operators that move, cast or shift values.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.errors import ModelError
from onnxprune.ir.inference import infer
from onnxprune.ir.model import ModelView
from onnxprune.ir.nodes import attribute, nested
from onnxprune.ir.shapes import Shapes

BINARY = (0, 2)  # range of integers that nothing bounds: valid as token, type, flag and index
_INTEGERS = frozenset(
    getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
)
# operators whose output holds values of some inputs (all if none are listed)
_MOVES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        "Cast Identity Reshape Squeeze Unsqueeze Flatten Transpose Expand Tile Slice Split Pad "
        "Gather GatherElements GatherND ReduceMax ReduceMin Clip Dropout".split(),
        (0,),
    ),
    "Where": (1, 2),
    **dict.fromkeys(("Concat", "Max", "Min"), ()),
}
# (operator, operand) -> (operand, its axis) that the values index; a str is the node's attribute
_INDEXES: dict[tuple[str, int], tuple[int, int | str]] = {
    **{(op, 1): (0, "axis") for op in ("Gather", "GatherElements", "ScatterElements", "Scatter")},
    **{(op, 1): (0, 0) for op in ("GatherND", "ScatterND")},
    ("GatherBlockQuantized", 1): (0, "gather_axis"),
    **{(f"{q}EmbedLayerNormalization", 0): (2, 0) for q in ("", "Q")},
    **{(f"{q}EmbedLayerNormalization", 1): (position, 0) for q, position in (("", 4), ("Q", 4))},
    ("SoftmaxCrossEntropyLoss", 1): (0, 1),
    ("NegativeLogLikelihoodLoss", 1): (0, 1),
}
# (operator, operand) -> (operand, its axis) whose length the values state
_LENGTHS: dict[tuple[str, int], tuple[int, int | str]] = {
    **{(op, 4): (0, "layout") for op in ("LSTM", "GRU", "RNN")},
    ("ReverseSequence", 1): (0, "time_axis"),
}
# operands that count something, of which one always fits
_COUNTS = frozenset(
    {("Tile", 1), ("TopK", 1), ("ConstantOfShape", 0), ("Loop", 0), ("Range", 1), ("Expand", 1)}
)
_MASK_NAME = re.compile(r"masks?$", re.IGNORECASE)
_IGNORED_NAME = re.compile(r"pad|ignore|invalid", re.IGNORECASE)  # ones exclude positions
_IMAGE_RANK = 3  # bytes of this rank or more are pixels or quantized features


@dataclass(frozen=True)
class _ShiftedInput:
    """A tensor with values `scale * x + shift`, x being those of an input.

    Attributes
    ----------
    scale
        Positive factor.
    least, most
        Smallest and largest shift.
    """

    tensor: str
    scale: int = 1
    least: int = 0
    most: int = 0


def integer_ranges(
    model: ModelView, shapes: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, int]]:
    """Return the range [low, high) of every integer and boolean input.

    Parameters
    ----------
    shapes
        Shape per input: axes of activations are indexed at these sizes.
    """
    walk = _RangeSearch(model, shapes)
    ranges = {}
    for info in model.proto.graph.input:
        kind = info.type.tensor_type.elem_type
        if info.name not in model.weights and (kind in _INTEGERS or kind == TensorProto.BOOL):
            ranges[info.name] = walk.range_of(info.name, kind, len(shapes.get(info.name, ())))
    return ranges


class _RangeSearch:
    """Consumers of tensors, and lengths of axes, of one model."""

    def __init__(self, model: ModelView, shapes: Mapping[str, Sequence[int]]) -> None:
        self.model, self.sizes = model, shapes
        self.consumers: dict[str, list[tuple[NodeProto, int]]] = defaultdict(list)
        for graph in nested(model.proto.graph):
            for node in graph.node:
                for position, name in enumerate(node.input):
                    self.consumers[name].append((node, position))
        self.known: Shapes | None = None

    def range_of(self, name: str, kind: int, rank: int) -> tuple[int, int]:
        """Return the range of one input."""
        low, high = 0, np.iinfo(np.int64).max
        seen, waiting = {name}, [_ShiftedInput(name)]
        bounded = False
        while waiting:
            flow = waiting.pop()
            for node, position in self.consumers[flow.tensor]:
                limits = self.limits(node, position)
                if limits is not None:
                    bounded = True
                    # x >= (limit - shift) / scale, rounded up
                    low = max(low, -((flow.least - limits[0]) // flow.scale))
                    # x < (limit - shift) / scale, rounded up because the bound is excluded
                    high = min(high, (limits[1] - flow.most - 1) // flow.scale + 1)
                for after in self.follow(node, position, flow):
                    if after.tensor not in seen:
                        seen.add(after.tensor)
                        waiting.append(after)
        # contradicting bounds: none of them is used
        if bounded and low < high:
            return low, high
        return _choose_default_range(name, kind, rank)

    def limits(self, node: NodeProto, position: int) -> tuple[int, int] | None:
        """Return the range [low, high) that an operand of a node must have; None if any."""
        place = node.op_type, position
        if place in _COUNTS:
            return 1, 2
        if place == ("OneHot", 0):
            depth = self.constant(node.input[1])
            return None if depth is None else (0, int(depth.max()))
        if node.op_type == "RotaryEmbedding":
            # operand order of the standard operator, then of onnxruntime's
            cache = {("", 3): 1, ("com.microsoft", 1): 2}.get((node.domain, position))
            return None if cache is None else self.indices(node, cache, 0)
        if place in _INDEXES:
            return self.indices(node, *_INDEXES[place])
        if place in _LENGTHS:
            within = self.indices(node, *_LENGTHS[place])
            return None if within is None else (1, within[1] + 1)
        return None

    def indices(self, node: NodeProto, operand: int, axis: int | str) -> tuple[int, int] | None:
        """Return the valid indices of an axis of an operand; None if its length is unknown."""
        if isinstance(axis, str):
            axis = int(attribute(node, axis, 0))
        shape = self.shape(node.input[operand]) if operand < len(node.input) else None
        length = shape[axis] if shape and -len(shape) <= axis < len(shape) else None
        return (0, length) if isinstance(length, int) else None

    def follow(self, node: NodeProto, position: int, flow: _ShiftedInput) -> list[_ShiftedInput]:
        """Return the outputs that hold values of an operand."""
        moved = _MOVES.get(node.op_type)
        if moved is not None and (not moved or position in moved):
            # the values of a boolean say nothing of the bounds further on
            to_bool = attribute(node, "to", 0) == TensorProto.BOOL
            return [] if to_bool else [replace(flow, tensor=o) for o in node.output[:64] if o]
        # x in c - x runs backwards, which the form scale * x + shift does not cover
        if node.op_type not in ("Add", "Sub", "Mul") or (node.op_type == "Sub" and position):
            return []
        other = self.constant(node.input[1 - position])
        # computed: followed as if it changed no value
        if other is None:
            return [replace(flow, tensor=node.output[0])]
        least, most = int(other.min()), int(other.max())
        if node.op_type == "Sub":
            least, most = -most, -least
        if node.op_type != "Mul":
            return [_ShiftedInput(node.output[0], flow.scale, flow.least + least, flow.most + most)]
        # factors that differ per element, or are not positive, give no bound
        if least != most or least < 1:
            return []
        return [
            _ShiftedInput(node.output[0], flow.scale * least, flow.least * least, flow.most * least)
        ]

    def constant(self, name: str) -> np.ndarray | None:
        """Return the values of a constant that is not empty."""
        weight = self.model.weights.get(name)
        if weight is not None:
            return weight.array() if int(np.prod(weight.shape)) else None
        for graph in nested(self.model.proto.graph):
            for node in graph.node:
                if node.op_type == "Constant" and name in node.output:
                    return _read_constant(node)
        return None

    def shape(self, name: str) -> tuple[int | str | None, ...] | None:
        """Return the shape of a tensor, that of an activation at the sizes of the inputs."""
        if name in self.model.weights:
            return tuple(self.model.weights[name].shape)
        if self.known is None:
            self.known = _infer_at(self.model, self.sizes)
        return self.known.shape(name)


def _read_constant(node: NodeProto) -> np.ndarray | None:
    """Return the number or numbers of a Constant node; None for other kinds."""
    for key in ("value_int", "value_ints", "value_float", "value_floats"):
        value = attribute(node, key)
        if value is not None:
            return np.atleast_1d(np.asarray(value))
    tensor = attribute(node, "value")
    if tensor is None or tensor.data_type == TensorProto.STRING:
        return None
    from onnx import numpy_helper

    values = np.atleast_1d(numpy_helper.to_array(tensor))
    return values if values.size else None


def _infer_at(model: ModelView, sizes: Mapping[str, Sequence[int]]) -> Shapes:
    """Infer shapes with these sizes of the inputs; empty if that fails."""
    copy = model.edit()
    for info in copy.proto.graph.input:
        if info.name in sizes:
            kind = info.type.tensor_type.elem_type
            info.CopyFrom(helper.make_tensor_value_info(info.name, kind, list(sizes[info.name])))
    try:
        return infer(copy)
    # bounds from axes of weights remain
    except ModelError:
        return Shapes({}, {}, set())


def _choose_default_range(name: str, kind: int, rank: int) -> tuple[int, int]:
    """Return the range of an input that no index or length bounds."""
    if _MASK_NAME.search(name):
        return (0, 1) if _IGNORED_NAME.search(name) else (1, 2)
    if rank >= _IMAGE_RANK and kind in (TensorProto.UINT8, TensorProto.INT8):
        limits = np.iinfo(helper.tensor_dtype_to_np_dtype(kind))
        return int(limits.min), int(limits.max) + 1
    return BINARY
