"""Tape that records ONNX nodes from arithmetic: `g * (y > 0)` adds the nodes that compute it.

Every shape is known when a backward graph is built, so a `Value` carries its own. Nodes have the
form of the model's opset (axes as an attribute or as an input, and so on). A comparison returns
booleans; multiplication by a boolean selects.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

PREFIX = "backward/"
# A power of two, so that scaling is exact; 1 / _STEEP is below any activation that matters.
_STEEP = 2.0**100
_LARGEST_FLOAT = 3e38
_IMAGE_RANK = 4
_AXES_AS_INPUT = {"ReduceSum": 13}  # first opset; the other reductions follow at 18
_AXES_AS_INPUT_OTHERS = 18
_SLICE_AS_INPUT, _PAD_AS_INPUT, _SCATTER_ELEMENTS, _EQUAL_OF_FLOATS = 10, 11, 11, 11


@dataclass(frozen=True)
class Tape:
    """Recorded nodes and constants.

    Attributes
    ----------
    opset : int
        Version of the default domain.
    taken : set of str
        Names in use.
    nodes : list of NodeProto
        Nodes in order.
    constants : dict
        Initializers by name.
    """

    opset: int
    taken: set[str] = field(repr=False)
    nodes: list[NodeProto] = field(default_factory=list, repr=False)
    constants: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    _known: dict[tuple[Any, ...], str] = field(default_factory=dict, repr=False)

    def name(self, wish: str) -> str:
        """Return an unused name and mark it as taken."""
        name = PREFIX + wish
        # names are never released, so this number occurs once
        if name in self.taken:
            name = f"{name}#{len(self.taken)}"
        self.taken.add(name)
        return name

    def constant(self, array: np.ndarray) -> Value:
        """Return an initializer; equal arrays share one."""
        # backward graphs repeat the same axes and shapes in many nodes
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.name("constant")
            self.constants[self._known[key]] = array
        return Value(
            self, self._known[key], array.shape, helper.np_dtype_to_tensor_dtype(array.dtype)
        )

    def integers(self, numbers: Iterable[int]) -> Value:
        """Return a constant vector of int64."""
        return self.constant(np.array(list(numbers), np.int64))

    def filled(self, shape: Sequence[int], number: float, dtype: int) -> Value:
        """Return a tensor of one number, created at run time."""
        # a constant of this size would be stored with the graph
        fill = helper.make_tensor("value", dtype, [1], [number])
        return self.emit("ConstantOfShape", [self.integers(shape)], shape, dtype, {"value": fill})

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        shape: Sequence[int],
        dtype: int,
        attributes: Mapping[str, Any] | None = None,
    ) -> Value:
        """Record a node with one output of this shape and type."""
        output = self.name(op)
        node = helper.make_node(
            op, ["" if v is None else v.name for v in inputs], [output], name=output
        )
        node.attribute.extend(
            helper.make_attribute(key, value) for key, value in (attributes or {}).items()
        )
        self.nodes.append(node)
        return Value(self, output, tuple(int(n) for n in shape), dtype)


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the graph under construction.

    Attributes
    ----------
    tape : Tape
        Records the nodes that read it.
    name : str
        Name of the tensor.
    shape : tuple of int
        Shape.
    dtype : int
        TensorProto.DataType.
    """

    tape: Tape = field(repr=False)
    name: str
    shape: tuple[int, ...]
    dtype: int

    def like(self, numbers: np.ndarray | float) -> Value:
        """Return a constant of this type."""
        dtype = helper.tensor_dtype_to_np_dtype(self.dtype)
        # ascontiguousarray turns scalars into vectors
        array = np.ascontiguousarray(numbers, dtype).reshape(np.shape(numbers))
        return self.tape.constant(array)

    def _combine(self, op: str, other: Value | float, swap: bool = False) -> Value:
        """Record a node of two operands; a boolean operand of Mul selects."""
        right = other if isinstance(other, Value) else self.like(other)
        if right.dtype == TensorProto.BOOL and self.dtype != TensorProto.BOOL:
            if op == "Mul":
                # unlike a product, this gives 0 where False meets infinity
                return self.where(right)
            right = right.cast(self.dtype)
        pair = [right, self] if swap else [self, right]
        return self.tape.emit(op, pair, np.broadcast_shapes(self.shape, right.shape), self.dtype)

    def __add__(self, other: Value | float) -> Value:
        """Record self + other."""
        return self._combine("Add", other)

    def __radd__(self, other: float) -> Value:
        """Record other + self."""
        return self._combine("Add", other)

    def __sub__(self, other: Value | float) -> Value:
        """Record self - other."""
        return self._combine("Sub", other)

    def __rsub__(self, other: float) -> Value:
        """Record other - self."""
        return self._combine("Sub", other, swap=True)

    def __mul__(self, other: Value | float) -> Value:
        """Record self * other."""
        return self._combine("Mul", other)

    def __rmul__(self, other: float) -> Value:
        """Record other * self."""
        return self._combine("Mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        """Record self / other."""
        return self._combine("Div", other)

    def __rtruediv__(self, other: float) -> Value:
        """Record other / self."""
        return self._combine("Div", other, swap=True)

    def __pow__(self, other: Value | float) -> Value:
        """Record self ** other."""
        return self._combine("Pow", other)

    def __neg__(self) -> Value:
        """Record -self."""
        return self.call("Neg")

    def __gt__(self, other: Value | float) -> Value:
        """Record self > other."""
        return self._compare("Greater", other)

    def __lt__(self, other: Value | float) -> Value:
        """Record self < other."""
        return self._compare("Less", other)

    def __and__(self, other: Value) -> Value:
        """Record self & other."""
        return self._combine("And", other)

    def __invert__(self) -> Value:
        """Record ~self."""
        return self.call("Not")

    def equals(self, other: Value) -> Value:
        """Return booleans, True for equal elements."""
        exact = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
        if self.tape.opset < _EQUAL_OF_FLOATS and self.dtype not in exact:
            # Equal takes integers and booleans only before opset 11
            return ~((self - other).call("Abs") > 0)
        return self._compare("Equal", other)

    def _compare(self, op: str, other: Value | float) -> Value:
        """Record a comparison."""
        right = other if isinstance(other, Value) else self.like(other)
        shape = np.broadcast_shapes(self.shape, right.shape)
        return self.tape.emit(op, [self, right], shape, TensorProto.BOOL)

    def above(self, bound: float) -> Value:
        """Return 1 for elements greater than the bound, else 0."""
        return self._step(1.0, bound)

    def below(self, bound: float) -> Value:
        """Return 1 for elements less than the bound, else 0."""
        return self._step(-1.0, bound)

    def _step(self, sign: float, bound: float) -> Value:
        """Return 1 on one side of the bound.

        A HardSigmoid so steep that no float is on its ramp: onnxruntime runs it in the blocked
        layout of Conv, which a comparison would leave.
        """
        # HardSigmoid exists for floats only, and its offset must not overflow
        if self.dtype != TensorProto.FLOAT or abs(bound) * _STEEP > _LARGEST_FLOAT:
            return (self > bound if sign > 0 else self < bound).cast(self.dtype)
        return self.call("HardSigmoid", {"alpha": sign * _STEEP, "beta": -sign * bound * _STEEP})

    def affine(self, scale: Value, shift: Value) -> Value:
        """Return scale * x + shift per channel, for rank 3 or more.

        Recorded as BatchNormalization, which runs in onnxruntime's blocked layout.
        """
        # mean 0 and variance 1: only scale and shift remain
        zeros, ones = (self.like(np.full(scale.shape, number)) for number in (0.0, 1.0))
        return self.tape.emit(
            "BatchNormalization",
            [self, scale, shift, zeros, ones],
            self.shape,
            self.dtype,
            {"epsilon": 0.0},
        )

    def where(self, condition: Value, other: Value | float = 0.0) -> Value:
        """Return this value for True, the other one for False."""
        right = other if isinstance(other, Value) else self.like(other)
        shape = np.broadcast_shapes(condition.shape, self.shape, right.shape)
        return self.tape.emit("Where", [condition, self, right], shape, self.dtype)

    def call(self, op: str, attributes: Mapping[str, Any] | None = None) -> Value:
        """Record an operator of one input that keeps shape and type, such as Exp or Softmax."""
        return self.tape.emit(op, [self], self.shape, self.dtype, attributes)

    def cast(self, dtype: int) -> Value:
        """Convert to another type."""
        if dtype == self.dtype:
            return self
        return self.tape.emit("Cast", [self], self.shape, dtype, {"to": dtype})

    def reduce(self, op: str, axes: Iterable[int], keepdims: bool = True) -> Value:
        """Record ReduceSum, ReduceMean or ReduceMax; without axes the value itself is returned."""
        axes = sorted({a % len(self.shape) for a in axes})
        if not axes:
            return self
        kept = [1 if i in axes else n for i, n in enumerate(self.shape)]
        shape = kept if keepdims else [n for i, n in enumerate(self.shape) if i not in axes]
        attributes: dict[str, Any] = {"keepdims": int(keepdims)}
        if self.tape.opset >= _AXES_AS_INPUT.get(op, _AXES_AS_INPUT_OTHERS):
            inputs = [self, self.tape.integers(axes)]
            return self.tape.emit(op, inputs, shape, self.dtype, attributes)
        return self.tape.emit(op, [self], shape, self.dtype, attributes | {"axes": axes})

    def sum_to(self, shape: Sequence[int]) -> Value:
        """Sum over every axis along which `shape` was broadcast: the adjoint of broadcasting."""
        lead = len(self.shape) - len(shape)
        axes = [
            i for i, n in enumerate(self.shape) if i < lead or (shape[i - lead] == 1 and n != 1)
        ]
        return self.reduce("ReduceSum", axes).reshape(shape)

    def sum_space(self) -> Value:
        """Return (samples, channels): the sum over all further axes.

        Images use a pool, which runs in onnxruntime's blocked layout; ReduceSum does not.
        """
        size = math.prod(self.shape[2:])
        if len(self.shape) != _IMAGE_RANK or self.dtype != TensorProto.FLOAT:
            return self.reduce("ReduceSum", range(2, len(self.shape)), keepdims=False)
        pooled = self.tape.emit("GlobalAveragePool", [self], [*self.shape[:2], 1, 1], self.dtype)
        return pooled.reshape(self.shape[:2]) * float(size)

    def expand(self, shape: Sequence[int]) -> Value:
        """Broadcast to the shape."""
        if tuple(shape) == self.shape:
            return self
        return self.tape.emit("Expand", [self, self.tape.integers(shape)], shape, self.dtype)

    def reshape(self, shape: Sequence[int]) -> Value:
        """Reshape without a change of elements."""
        # nodes that change nothing would still run
        if tuple(shape) == self.shape:
            return self
        return self.tape.emit("Reshape", [self, self.tape.integers(shape)], shape, self.dtype)

    def transpose(self, perm: Sequence[int]) -> Value:
        """Permute the axes."""
        if list(perm) == list(range(len(self.shape))):
            return self
        shape = [self.shape[p] for p in perm]
        attributes = {"perm": [int(p) for p in perm]}
        return self.tape.emit("Transpose", [self], shape, self.dtype, attributes)

    def swap_last(self) -> Value:
        """Exchange the last two axes."""
        rank = len(self.shape)
        return self.transpose([*range(rank - 2), rank - 1, rank - 2])

    def matmul(self, other: Value) -> Value:
        """Multiply matrices over the last two axes; leading axes broadcast, ranks are 2 or more."""
        lead = np.broadcast_shapes(self.shape[:-2], other.shape[:-2])
        shape = (*lead, self.shape[-2], other.shape[-1])
        return self.tape.emit("MatMul", [self, other], shape, self.dtype)

    def slice(self, axis: int, start: int, stop: int, step: int = 1) -> Value:
        """Return positions start, start + step, ... below stop of one axis; step > 0."""
        if (start, stop, step) == (0, self.shape[axis], 1):
            return self
        shape = [*self.shape]
        shape[axis] = len(range(start, stop, step))
        if self.tape.opset < _SLICE_AS_INPUT:
            # Slice has no steps before opset 10
            if step != 1:
                return self.take(axis, np.arange(start, stop, step))
            attributes = {"starts": [start], "ends": [stop], "axes": [axis]}
            return self.tape.emit("Slice", [self], shape, self.dtype, attributes)
        bounds = [self.tape.integers([n]) for n in (start, stop, axis, step)]
        return self.tape.emit("Slice", [self, *bounds], shape, self.dtype)

    def pad(self, before: Sequence[int], after: Sequence[int]) -> Value:
        """Pad with zeros; negative counts crop."""
        if not any(before) and not any(after):
            return self
        shape = [n + b + a for n, b, a in zip(self.shape, before, after, strict=True)]
        if self.tape.opset < _PAD_AS_INPUT:
            attributes = {"pads": [*before, *after], "mode": "constant", "value": 0.0}
            return self.tape.emit("Pad", [self], shape, self.dtype, attributes)
        inputs = [self, self.tape.integers([*before, *after]), self.like(0)]
        return self.tape.emit("Pad", inputs, shape, self.dtype)

    def pad_axis(self, axis: int, before: int, after: int) -> Value:
        """Pad one axis with zeros."""
        starts, ends = [0] * len(self.shape), [0] * len(self.shape)
        starts[axis], ends[axis] = before, after
        return self.pad(starts, ends)

    def take(self, axis: int, indices: np.ndarray) -> Value:
        """Gather elements of one axis by a constant index vector."""
        shape = [len(indices) if i == axis else n for i, n in enumerate(self.shape)]
        inputs = [self, self.tape.constant(indices.astype(np.int64))]
        return self.tape.emit("Gather", inputs, shape, self.dtype, {"axis": axis})

    def scatter(self, indices: Value, updates: Value, axis: int) -> Value:
        """Replace elements (ScatterElements); no index may occur twice."""
        op = "ScatterElements" if self.tape.opset >= _SCATTER_ELEMENTS else "Scatter"
        return self.tape.emit(op, [self, indices, updates], self.shape, self.dtype, {"axis": axis})


def total(values: Sequence[Value]) -> Value:
    """Return the sum of values."""
    first, *rest = values
    for value in rest:
        first = first + value
    return first


def concat(values: Sequence[Value], axis: int) -> Value:
    """Concatenate along an axis."""
    if len(values) == 1:
        return values[0]
    shape = list(values[0].shape)
    shape[axis] = sum(v.shape[axis] for v in values)
    return values[0].tape.emit("Concat", values, shape, values[0].dtype, {"axis": axis})
